# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random sound images, converted by us to raw and to qcow2, against what qemu-img and libqcow read.

How many: the environment variable VMIMAGE_QCOW_DIFFERENTIAL_EXAMPLES, spread over the families. The images are the same in every run; with
VMIMAGE_QCOW_DIFFERENTIAL_RANDOM=1 they are others each time, and a failure prints how to repeat it. A failing image is made as small as
possible only with VMIMAGE_QCOW_DIFFERENTIAL_SHRINK=1: that takes minutes.
"""

import hashlib
import os
import pathlib
import struct
import tempfile
from typing import Any, Callable

import hypothesis
import hypothesis.strategies as st
import pytest

from ansible_collections.vmimage.qcow.plugins.module_utils import _workers
from ansible_collections.vmimage.qcow.plugins.module_utils._migration import batch
from ansible_collections.vmimage.qcow.plugins.module_utils._migration.request import Request
from ansible_collections.vmimage.qcow.tests.support import engine, oracle
from ansible_collections.vmimage.qcow.tests.support.fingerprint import described
from ansible_collections.vmimage.qcow.tests.support.strategies import FAMILIES, Chain, comparable, layer_name, nodes_of, write_chain

EXAMPLES = int(os.environ.get("VMIMAGE_QCOW_DIFFERENTIAL_EXAMPLES", "600"))
RANDOM = os.environ.get("VMIMAGE_QCOW_DIFFERENTIAL_RANDOM") == "1"
PHASES = [
    phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.shrink or os.environ.get("VMIMAGE_QCOW_DIFFERENTIAL_SHRINK") == "1"
]
SLICES = 2
SETTINGS = hypothesis.settings(
    max_examples=max(1, -(-EXAMPLES // (len(FAMILIES) * SLICES))),
    deadline=None,
    print_blob=True,
    derandomize=False,
    database=None,
    phases=PHASES,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)

SHAPES = st.one_of(
    st.just({}),
    st.just({"layout": "keep"}),
    st.fixed_dictionaries({"cluster_size": st.sampled_from([512, 4096, 65536, 2 << 20])}),
    st.fixed_dictionaries({"compression": st.just("zlib"), "cluster_size": st.sampled_from([512, 4096, 65536])}),
    st.fixed_dictionaries({"extended_l2": st.just(True), "cluster_size": st.sampled_from([16384, 65536])}),
)
"""Of qcow2 results, overlays included."""

QCOW2_OPTIONS = st.one_of(
    SHAPES,
    SHAPES,
    st.just({"compression": "zstd"}),
    st.just({"compat": "0.10"}),
    st.fixed_dictionaries({"preallocation": st.sampled_from(["metadata", "falloc", "full"])}),
)
"""Of qcow2 results that stand alone."""

COMMON_OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "lazy_refcounts": st.booleans(),
        "page_cache": st.sampled_from(["use", "spare"]),
        "engine": st.sampled_from(["auto", "qemu-img"]),
    },
)


class Tally:
    """Counts compared images, how many of them differ from one another, and how many libqcow was asked about."""

    def __init__(self) -> None:
        self.images = 0
        self.libqcow = 0
        self.seen: set[bytes] = set()

    def compare(self, directory: str, results: str, chain: Chain, options: dict[str, Any], shape: dict[str, Any]) -> None:
        images, disk = write_chain(directory, chain)
        top = os.path.join(directory, layer_name(0))
        nodes = nodes_of(directory, chain)
        passwords = {node.path: node.secret for node in nodes if node.secret is not None}
        raw, qcow2 = os.path.join(results, "result.raw"), os.path.join(results, "result.qcow2")
        # Its own records for each image: looking through those of all others would be most of the work.
        # Random content looks like that of a wrong passphrase, so that is not judged here.
        common = {"passwords": passwords, "state_dir": os.path.join(results, "state"), "chains": "flatten", "force_passphrase": True}
        proofs = [
            engine.convert(top, raw, format="raw", **common)["fingerprint"],
            engine.convert(top, qcow2, format="qcow2", **common, **options)["fingerprint"],
        ]
        theirs, ours = oracle.guest_bytes(*nodes), pathlib.Path(raw).read_bytes()
        # qemu-img drops the bytes behind the last whole sector, of a base too; those must be what was put there.
        assert comparable(ours, chain) == comparable(theirs, chain)
        assert ours == disk
        assert proofs == [described(disk, len(disk))] * 2
        oracle.assert_clean(qcow2)
        assert oracle.identical(oracle.Node(qcow2, "qcow2"), oracle.Node(raw, "raw"))
        with open(qcow2, "rb") as result:
            assert struct.unpack_from(">Q", result.read(32), 24)[0] == len(disk)
        if len(chain) > 1:
            self._compare_thin(results, chain, nodes, disk, passwords, shape)
        if oracle.libqcow_can_read(images[0]):
            assert oracle.libqcow_bytes(top, len(disk), chain[0].password) == disk
            self.libqcow += 1
        self.images += 1
        self.seen.add(hashlib.sha256(b"".join(image.data for image in images)).digest())

    @staticmethod
    def _compare_thin(
        results: str, chain: Chain, nodes: list[oracle.Node], disk: bytes, passwords: dict[str, str], shape: dict[str, Any]
    ) -> None:
        """The whole chain migrated as a chain: what qemu-img reads of that is what the guest saw of the old one."""
        state = os.path.join(results, "thin")
        secrets = tuple((os.fsencode(image), os.fsencode(secret)) for image, secret in passwords.items())
        ours = [node for node in nodes if node.driver == "qcow"]
        requests = [
            Request(
                os.fsencode(node.path),
                os.fsencode(os.path.join(results, "thin%d" % depth)),
                state_dir=os.fsencode(state),
                passphrase_files=secrets,
                force_passphrase=True,
                **shape,
            )
            for depth, node in enumerate(ours)
        ]
        outcome = batch.run(requests, batch.Settings(os.fsencode(state)))
        assert not [result["msg"] for result in outcome if result["failed"]]
        thin = [oracle.Node(os.path.join(results, "thin%d" % depth), "qcow2") for depth in range(len(ours))]
        for node in thin:
            oracle.assert_clean(node.path)
        assert oracle.guest_bytes(*thin, *nodes[len(ours) :]) == disk


@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("family", FAMILIES)
def test_conversion_agrees_with_qemu_img(family: str, part: int, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    oracle.require_v1_driver()
    if part % 2:
        monkeypatch.setattr(_workers, "SMALL", -1)  # half of them by several processes, which usually small images never see
    tally = Tally()

    @SETTINGS
    @hypothesis.given(chain=FAMILIES[family], options=QCOW2_OPTIONS, common=COMMON_OPTIONS, shape=SHAPES)
    def conversion_agrees(chain: Chain, options: dict[str, Any], common: dict[str, Any], shape: dict[str, Any]) -> None:
        options = {**options, **common}
        if any(layer.size % 512 for layer in chain) or options.get("layout") == "keep":
            options.pop("engine", None)  # qemu-img drops bytes, and lays out anew
        if options.get("compat") == "0.10":
            options.pop("lazy_refcounts", None)
        # Memory-backed where there is such a place: results and records are synced many times, and nothing here is about disks. Backing
        # files are never followed below /dev, so chains lie elsewhere.
        scratch = engine.scratch_directory()
        with tempfile.TemporaryDirectory(dir=scratch) as results:
            with tempfile.TemporaryDirectory(dir=None if len(chain) > 1 else scratch) as directory:
                tally.compare(directory, results, chain, options, shape)

    if not RANDOM:
        conversion_agrees = hypothesis.seed("%s %d" % (family, part))(conversion_agrees)
    conversion_agrees()
    tell(
        "%d random images converted to raw and to qcow2, identical to qemu-img" % tally.images,
        random_images=tally.images,
        distinct_random_images=len(tally.seen),
        random_images_read_by_libqcow=tally.libqcow,
    )
