# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people get wrong on the command line: nothing is taken for "nothing found", and the message names what is wrong and the way out."""

import json
import os
import pathlib
import shutil
from typing import Any, Optional

import pytest

from ansible_collections.vmimage.qcow.tests.support.builder import ImageSpec, Plain, build
from ansible_collections.vmimage.qcow.tests.support.playbook import CORES, Controller, Played
from ansible_collections.vmimage.qcow.tests.support.require import require_root

IMAGE = ImageSpec(size=1 << 20, clusters={1: Plain(b"data")})


class Place:
    """A controller whose only host has one image in ``images``."""

    def __init__(self, scratch: pathlib.Path, core: str = "2.19", hosts: Optional[dict[str, dict[str, Any]]] = None) -> None:
        self.controller = Controller(scratch, core=core, hosts=hosts or {"kvm1": {}})
        self.images = scratch / "images"
        self.images.mkdir()
        build(IMAGE).write(self.images / "one.qcow")
        self.reports = self.controller.work / "qcow-reports"
        self.state = str(scratch / "state")

    def run(self, playbook: str, *arguments: str, **variables: Any) -> Played:
        given = dict({playbook + "_state_dir": self.state}, **variables)
        return self.controller.run(
            playbook, *arguments, **{name: str(value) if isinstance(value, pathlib.Path) else value for name, value in given.items()}
        )

    def names(self) -> list[str]:
        return sorted(os.listdir(self.images))


@pytest.fixture(name="place")
def _place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def problems(played: Played, host: str) -> str:
    """What is left on a host, as the report and the end of the run say it; the host has failed for it."""
    assert played.counts[host]["failures"] == 1, played.output
    told = "; ".join(played.results("qcow_report", host)[0]["problems"])
    end = played.output[played.output.rindex("PLAY [") :]
    assert host in end, end
    return told


PATHS = {
    "missing": ("{images}/typo", "{images}/typo: No such file or directory. Give a path that exists, or set missing_ok."),
    "comma": ("{images},/srv", '{images},/srv: No such file or directory. Give several paths as a list: ["/first", "/second"].'),
    "pattern": ("{images}/*.qcow", "{images}/*.qcow: No such file or directory. Patterns are not expanded: give the directory"),
    "relative": ("images", "paths: images is a relative path. Give an absolute path"),
}


@pytest.mark.parametrize("playbook", ["scan", "migrate"])
def test_a_path_that_cannot_be_looked_at_fails(playbook: str, tmp_path: pathlib.Path) -> None:
    images = str(tmp_path / "images")
    hosts = {name: {playbook + "_paths": path.replace("{images}", images)} for name, (path, _message) in PATHS.items()}
    hosts["may"] = {playbook + "_paths": images + "/typo", playbook + "_missing_ok": True}
    place = Place(tmp_path, hosts=hosts)
    played = place.run(playbook, **({"scan_fail_on_found": True} if playbook == "scan" else {}))
    assert (played.returncode, played.counts["may"]["failures"]) == (2, 0), played.output
    for name, (_path, message) in PATHS.items():
        assert message.replace("{images}", images) in problems(played, name)
    assert place.names() == ["one.qcow"]


@pytest.mark.parametrize("playbook", ["rollback", "cleanup"])
def test_a_path_without_records_fails(playbook: str, tmp_path: pathlib.Path) -> None:
    images = str(tmp_path / "images")
    paths = {"typo": images + "/typo", "never": images + "/one.qcow", "comma": images + ",/srv", "relative": "images", "there": images}
    hosts: dict[str, dict[str, Any]] = {name: {playbook + "_paths": path} for name, path in paths.items()}
    hosts["may"] = {playbook + "_paths": images + "/typo", playbook + "_missing_ok": True}
    played = Place(tmp_path, hosts=hosts).run(playbook)
    assert (played.returncode, played.counts["may"]["failures"], played.counts["there"]["failures"]) == (2, 0, 0), played.output
    for name in ("typo", "never", "comma"):
        told = problems(played, name)
        assert paths[name] + ": " in told and "no record names it" in told and "several paths are given as a list" in told
    assert "images is a relative path" in problems(played, "relative")


def test_an_image_that_was_migrated_is_not_missing(place: Place) -> None:
    image = place.images / "one.qcow"
    assert place.run("migrate", migrate_paths=image).changed == 1
    again = place.run("migrate", migrate_paths=image)
    assert (again.returncode, again.changed) == (0, 0) and "migrated before" in again.text, again.output
    assert place.run("scan", scan_paths=image, scan_fail_on_found=True).returncode == 0


@pytest.mark.parametrize("playbook", ["scan", "migrate"])
def test_a_directory_without_the_right_to_read_it_fails(playbook: str, place: Place) -> None:
    require_root()
    (place.images / "private").mkdir(mode=0o700)
    os.chmod(place.controller.scratch, 0o755)
    for folder in [place.controller.scratch, *place.controller.scratch.parents][:-2]:
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
    programs = place.controller.scratch / "as-nobody"
    programs.write_text('#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 "$@"\n')
    programs.chmod(0o755)
    played = place.run(
        playbook,
        **{
            playbook + "_paths": place.images,
            playbook + "_state_dir": str(place.controller.scratch / "nobody's"),
            "ansible_python_interpreter": str(programs),
        },
    )
    message = "{0}/private: Permission denied. Run with the rights to read it (become), or leave it out (exclude: {0}/private).".format(
        place.images
    )
    assert (played.returncode, message in played.text) == (2, True), played.output


@pytest.mark.parametrize("core", CORES)
def test_a_group_without_hosts_fails(core: str, tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, core)
    for playbook in ("scan", "migrate", "rollback", "cleanup") if core == "2.19" else ("scan",):
        paths = {playbook + "_paths": place.images}
        typo = place.run(playbook, qcow_hosts="vm_host", **paths)
        assert (typo.returncode, "No host of the inventory matches vm_host. Nothing was done." in typo.text) == (2, True), typo.output
        limited = place.run(playbook, "--limit", "other", **paths)
        message = "No host of the inventory matches vm_hosts within --limit. Nothing was done."
        assert (limited.returncode, message in limited.text) == (4, True), limited.output
    (place.controller.work / "inventory.json").write_text("{}")
    nobody = place.run("scan", scan_paths=place.images)
    assert (nobody.returncode, "No host of the inventory matches vm_hosts." in nobody.text) == (2, True), nobody.output
    assert place.run("scan", "--syntax-check").returncode == 0
    here = place.run("scan", qcow_hosts="localhost", scan_paths=place.images)
    assert here.returncode == 0, here.output


def test_nothing_given_fails(place: Place) -> None:
    assert "missing required arguments: scan_paths" in place.run("scan").text
    played = place.run("migrate", migrate_paths="")
    assert (played.returncode, "Set either migrate_paths or migrate_plan." in played.text) == (2, True), played.output
    assert place.run("rollback").returncode == 2


# ---- plans -----------------------------------------------------------------------------------------------------------------------


def test_a_plan_that_does_not_fit_fails_and_says_so_everywhere(place: Place) -> None:
    scanned = place.run("scan", scan_paths=place.images)
    assert scanned.returncode == 0, scanned.output
    plan = place.reports / "plan-kvm1.yml"
    checked = place.run("migrate", "--check", migrate_paths=place.images, migrate_reserve="1000P")
    assert (checked.returncode, "the plan does not fit" in checked.text) == (2, True), checked.output
    plan.write_text(plan.read_text().replace("refused: null", "refused: the plan does not fit, 1 GiB is missing."))
    played = place.run("migrate", migrate_plan=plan)
    assert played.returncode == 2 and "could not be carried out as a whole: the plan does not fit, 1 GiB is missing." in played.text
    assert place.names() == ["one.qcow"]


def test_an_image_that_the_plan_refuses_fails_and_the_others_are_migrated(place: Place) -> None:
    build(IMAGE).write(place.images / "two.qcow")
    os.truncate(place.images / "two.qcow", 4200)
    assert place.run("scan", scan_paths=place.images).returncode == 0
    for _again in range(2):
        played = place.run("migrate", migrate_plan="qcow-reports")
        assert (played.returncode, "two.qcow: the plan refuses it: " in played.text) == (2, True), played.output
        assert place.names() == ["one.qcow.qcow1.orig", "one.qcow2", "two.qcow"]
    plan = place.reports / "plan-kvm1.yml"
    plan.write_text(plan.read_text().replace("action: refuse", "action: skip"))
    assert place.run("migrate", migrate_plan="qcow-reports").returncode == 0


PLANS = {
    "empty": ("", "is no plan that vmimage.qcow.scan has written"),
    "another": ("schema: 1\nhost: kvm2\nimages: []\n", "is for the host kvm2"),
    "half": ("schema: 1\nhost: half\nimages: [{src: /x}]\n", "has no src or no action"),
    "broken": ("{", "cannot be read"),
}


def test_what_is_no_plan_fails(tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, hosts={name: {} for name in (*PLANS, "none", "may")})
    place.reports.mkdir()
    nothing = place.run("migrate", "--limit", "may", migrate_plan="qcow-reports", migrate_missing_ok=True)
    assert "There is no plan for this host" in problems(nothing, "may"), "a directory without any plan is a mistake in any case"
    for name, (content, _message) in PLANS.items():
        (place.reports / ("plan-%s.yml" % name)).write_text(content)
    played = place.run("migrate", migrate_plan="qcow-reports", migrate_missing_ok="{{ inventory_hostname == 'may' }}")
    assert (played.returncode, played.counts["may"]["failures"]) == (2, 0), played.output
    assert "There is no plan for this host" in problems(played, "none")
    for name, (_content, message) in PLANS.items():
        assert message in problems(played, name)


def test_a_plan_that_is_not_there_fails(place: Place) -> None:
    played = place.run("migrate", migrate_plan="typo.yml")
    assert (played.returncode, "typo.yml cannot be read" in played.text) == (2, True), played.output


# ---- check mode, blanks, booleans, paths, numbers --------------------------------------------------------------------------------


def test_check_mode_tells_the_truth_about_a_directory_that_is_yet_to_be_made(place: Place) -> None:
    build(IMAGE).write(place.images / "two.qcow")
    results = place.images.parent / "results"
    more = {"migrate_paths": place.images, "migrate_dest_dir": results / "of" / "today"}
    checked = place.run("migrate", "--check", **more)
    assert checked.returncode == 0 and not results.exists(), checked.output
    would = {image["dest"] for image in checked.converted if image["changed"]}
    done = place.run("migrate", **more)
    assert done.returncode == 0, done.output
    assert (
        would
        == {image["dest"] for image in done.converted if image["changed"]}
        == {str(results / "of/today/one.qcow2"), str(results / "of/today/two.qcow2")}
    )


def _kept(reports: pathlib.Path, host: str = "kvm1") -> dict[str, Any]:
    """What the controller keeps of a host."""
    return json.loads((reports / ("host-%s.jsonl" % host)).read_text().splitlines()[0])


def test_blank_answers_mean_not_given(place: Place) -> None:
    blank = {
        "scan": "exclude libvirt_uri reference_dirs plan_speed metrics_file report_dir",
        "migrate": "exclude dest_dir cluster_size backing_dirs libvirt_uri passphrase_file luks_passphrase_file reference_dirs bandwidth reserve plan "
        "max_minutes max_bytes time_limit metrics_file report_dir",
        "rollback": "records libvirt_uri report_dir",
        "cleanup": "paths records report_dir",
    }
    for playbook, names in blank.items():
        given = {} if playbook == "cleanup" else {playbook + "_paths": place.images}
        played = place.run(playbook, **given, **{"%s_%s" % (playbook, name): "" for name in names.split()})
        assert played.returncode == 0 and _kept(place.reports)["last_play"] == playbook, played.output
        assert place.names() == (["one.qcow.qcow1.orig", "one.qcow2"] if playbook == "migrate" else ["one.qcow"])
    # Not for real: the default is this machine's.
    assert place.run("migrate", "--check", migrate_paths=place.images, migrate_state_dir="").returncode == 0


@pytest.mark.parametrize("core", CORES)
def test_booleans_of_the_command_line_are_booleans(core: str, tmp_path: pathlib.Path) -> None:
    place = Place(tmp_path, core)
    off = [part for name in ("write_plan", "fleet_report", "fingerprint", "query_libvirt") for part in ("-e", "scan_%s=false" % name)]
    played = place.run("scan", *off, "-e", "scan_fail_on_found=no", scan_paths=place.images)
    assert played.returncode == 0, played.output
    assert sorted(path.name for path in place.reports.iterdir()) == [".lock", "host-kvm1.jsonl", "runs.jsonl"]
    assert place.run("scan", "-e", "scan_fail_on_found=yes", "-e", "scan_write_report=false", scan_paths=place.images).returncode == 2
    off = [
        part
        for name in ("fleet_report", "timestamps", "one_filesystem", "missing_ok", "fail_on_in_use")
        for part in ("-e", "migrate_%s=false" % name)
    ]
    shutil.rmtree(place.reports)
    played = place.run("migrate", *off, migrate_paths=place.images)
    assert (played.returncode, played.changed) == (0, 1), played.output
    assert sorted(path.name for path in place.reports.iterdir()) == [".lock", "host-kvm1.jsonl", "runs.jsonl"]


def test_a_relative_report_directory_is_where_the_command_was_given(place: Place) -> None:
    for playbook in ("scan", "migrate", "rollback", "cleanup"):
        played = place.run(playbook, **{playbook + "_paths": place.images, playbook + "_report_dir": "here/" + playbook})
        assert played.returncode == 0, played.output
        assert _kept(place.controller.work / "here" / playbook)["last_play"] == playbook


def test_a_tilde_is_the_home_directory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    home = place.controller.scratch / "home"
    home.mkdir()
    place.images.rename(home / "images")
    (home / "key").write_text("geheim")
    given = {"migrate_passphrase_files": {"~/images/one.qcow": "~/key"}, "migrate_backing_formats": {"~/images/one.qcow": "qcow"}}
    played = place.controller.run(
        "migrate",
        environment={"HOME": str(home)},
        migrate_paths="~/images",
        migrate_dest_dir="~/results",
        migrate_state_dir="~/state",
        migrate_report_dir="~/reports",
        migrate_backing_dirs=["~/images"],
        migrate_reference_dirs=["~/images"],
        migrate_passphrase_file="~/key",
        **given,
    )
    assert played.returncode == 0, played.output
    for name in ("results/one.qcow2", "state/records", "reports/index.html"):
        assert (home / name).exists(), played.output
    assert not (place.controller.work / "~").exists()


NUMBERS = {
    "migrate": {
        "workers": 0,
        "max_minutes": -1,
        "shutdown_timeout": -1,
        "lock_timeout": -1,
        "time_limit": 0,
        "progress_interval": -1,
        "bandwidth": "0",
        "max_bytes": "-5G",
        "reserve": "120%",
        "cluster_size": "3K",
    },
    "scan": {"plan_speed": "0"},
    "rollback": {"lock_timeout": -1},
    "cleanup": {"min_age_days": -1, "lock_timeout": -1},
}


@pytest.mark.parametrize("playbook", NUMBERS)
def test_numbers_that_cannot_be_meant_are_refused_by_name(playbook: str, tmp_path: pathlib.Path) -> None:
    hosts = {name.replace("_", ""): {"%s_%s" % (playbook, name): value} for name, value in NUMBERS[playbook].items()}
    place = Place(tmp_path, hosts=hosts)
    played = place.run(playbook, **{playbook + "_paths": place.images})
    assert played.returncode == 2, played.output
    for name in NUMBERS[playbook]:
        host, told = name.replace("_", ""), name
        assert played.counts[host]["failures"] == 1 and told + ": " in played.output, played.output
        assert playbook == "scan" or problems(played, host).startswith(told + ": ")
    assert place.names() == ["one.qcow"]


# ---- exit codes ------------------------------------------------------------------------------------------------------------------


def test_exit_code_0_when_nothing_is_left(place: Place) -> None:
    assert place.run("migrate", migrate_paths=place.images).returncode == 0
    assert place.run("migrate", migrate_paths=place.images).returncode == 0


def test_exit_code_0_when_a_limit_has_deferred(place: Place) -> None:
    played = place.run("migrate", migrate_paths=place.images, migrate_max_minutes=0)
    assert (played.returncode, "deferred" in played.text, place.names()) == (0, True, ["one.qcow"]), played.output


def test_exit_code_1_when_there_is_no_such_playbook(place: Place) -> None:
    assert place.controller.run("migrat").returncode == 1


def test_exit_code_2_when_an_image_is_refused(place: Place) -> None:
    os.truncate(place.images / "one.qcow", 4200)
    assert place.run("migrate", migrate_paths=place.images).returncode == 2


def test_exit_code_4_when_a_host_is_not_reached(tmp_path: pathlib.Path) -> None:
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    place = Place(tmp_path, hosts={"away": away, "kvm1": {}})
    for playbook in ("scan", "migrate", "rollback", "cleanup"):
        played = place.run(playbook, "-e", "qcow_serial=1", **{playbook + "_paths": place.images})
        assert played.returncode == 4, played.output
        assert (
            played.text.count(", 1 not reached") == 1
            and played.counts["away"]["unreachable"] == 1
            and played.counts["kvm1"]["failures"] == 0
        )
        assert _kept(place.reports)["last_play"] == playbook and _kept(place.reports, "away")["unreached_since"]
    assert place.names() == ["one.qcow"]


def test_exit_code_4_when_another_host_has_a_problem_too(tmp_path: pathlib.Path) -> None:
    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
    place = Place(tmp_path, hosts={"away": away, "kvm1": {}})
    os.truncate(place.images / "one.qcow", 4200)
    played = place.run("migrate", migrate_paths=place.images)
    assert (played.returncode, played.counts["kvm1"]["failures"]) == (4, 1), played.output
