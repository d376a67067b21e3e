# Copyright: (c) 2026, vmimage.qcow contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images by the names with which words of a text can be compared."""

import os
from typing import Dict, Iterable, List, Mapping, Set, Tuple

from .._directories import real_path
from .._host.places import Entry, Places
from .._libvirt.option_text import MOST_READINGS, TOKEN, absolute_words, parts, readings

Images = Tuple[Tuple[bytes, Tuple[bytes, ...]], ...]
"""Images that a name leads to, each with the symbolic links on the way."""

Place = Tuple[int, int]
"""A directory by device and inode."""


class Spelling:
    """The last part of the names of images that is the same for all of them."""

    def __init__(self, base: bytes, tail: bytes) -> None:
        self.base = base
        self.tail = tail  # what follows the last token of the base
        self.names: Dict[bytes, bytes] = {}  # whose image has this name in full
        self.lengths: Set[int] = set()  # of those names
        self.volumes: Dict[bytes, Images] = {}  # by the last directory, as in Proxmox's volumes


class KnownNames:
    """The images by everything that a word can be compared with."""

    def __init__(self, paths: Mapping[bytes, Iterable[bytes]]) -> None:
        self.places = Places(os.path.dirname(real_path(path)) for path in paths)
        self.tokens: Dict[bytes, List[Spelling]] = {}
        self._spellings: Dict[bytes, Spelling] = {}
        self._keys: Dict[Tuple[int, int, bytes], Images] = {}
        self.paths: Dict[Place, bytes] = {}  # of the directories that hold images
        self._homes: Dict[bytes, Dict[Place, Images]] = {}
        self._words: Dict[bytes, Images] = {}
        self._dull: Set[bytes] = set()  # words that lead to no image
        self._marks: Set[bytes] = set()  # words with which a known name may end
        for path in paths:
            for entry in self.places.entries(path):
                self._set(entry, self._keys.get(entry.key, ()) + ((path, ()),))
        for path, more in paths.items():
            for name in sorted({path, real_path(path), *more}):
                self._add(path, name)

    def _add(self, image: bytes, name: bytes) -> None:
        base = os.path.basename(name)
        tokens = list(TOKEN.finditer(base))
        if tokens:
            last = tokens[-1]
            if base not in self._spellings:
                self._spellings[base] = Spelling(base, base[last.end() :])
                self.tokens.setdefault(last.group(), []).append(self._spellings[base])
            spelling, directory = self._spellings[base], os.path.basename(os.path.dirname(name))
            spelling.names[name] = image
            spelling.lengths.add(len(name))
            spelling.volumes[directory] = spelling.volumes.get(directory, ()) + ((image, ()),)
            self._marks.update((last.group(), last.group() + b"."))
        entries = self.places.entries(name)
        if entries and entries[0].key not in self._keys:  # a link
            self._set(entries[0], self.at(name))

    def _set(self, entry: Entry, images: Images) -> None:
        self._keys[entry.key] = images
        self._homes.setdefault(entry.name, {})[entry.key[:2]] = images
        self.paths[entry.key[:2]] = entry.directory.path

    def may_be_in(self, data: bytes) -> bool:
        """Whether it is worth while to look at a text line by line."""
        texts = readings(data)
        if len(texts) >= MOST_READINGS:
            return True
        words: Set[bytes] = set()
        for text in texts:
            words.update(absolute_words(text))
            if self.may_end_in(text):
                return True
        return any(self.parts(word) for word in words - self._dull)

    def may_end_in(self, text: bytes) -> bool:
        """Whether a text has the last word of a known name."""
        return not self._marks.isdisjoint(TOKEN.findall(text))

    def parts(self, word: bytes) -> List[bytes]:
        """What of a word, as it stands in a reading, leads to an image."""
        if word in self._dull:
            return []
        found = [part for part in parts(word) if self.at(part)]
        if not found:
            self._dull.add(word)
        return found

    def at(self, path: bytes) -> Images:
        """The images that an absolute path leads to."""
        if path not in self._words:
            links: Tuple[bytes, ...] = ()
            found: Images = ()
            for entry in self.places.entries(path):
                if entry.key in self._keys:
                    found = tuple((image, links + more) for image, more in self._keys[entry.key])
                    break
                links += (entry.path,)
            self._words[path] = found
        return self._words[path]

    def homes(self, base: bytes) -> Dict[Place, Images]:
        """The directories that hold images of this name."""
        return self._homes.get(base, {})
