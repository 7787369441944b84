# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A directory of secrets on the controller, whose files change several at a time, all of them or none.

A key and its certificate are two files, and no file system renames two at once. So a change is written down first: the
new contents lie in ``.change-<random>``, complete and synced, together with ``record.json``, which says where each
belongs and what goes. One rename to ``.change`` makes it true. From then on readers look there first, and all that is
left are renames and removals, which need no space and do no harm when repeated: whoever holds the lock next does them.
A cut before that rename leaves the old files in force and a directory that nobody reads. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import stat

from ansible_collections.edgesec.nanomq.plugins.module_utils._files import (
    FileProblem,
    check_vault,
    fsync_dir,
    locked,
    make_directories,
    read_regular,
    write_new,
)

CHANGE, RECORD = ".change", "record.json"

#: What a cut before the change became true leaves behind.
_STAGED = re.compile(r"\.change-[0-9a-f]{16}", re.ASCII)

#: Seconds to wait for another run that works on the same directory.
PATIENCE = 30


class Vault:
    """The directory ``path``; its files are named without it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def exists(self) -> bool:
        """Whether it is there. Raises FileProblem when it is not fit for secrets."""
        return check_vault(self.path)

    def file(self, name: str) -> str:
        """Return the path of a file, for messages."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, of whatever kind."""
        staged, removed = self._pending()
        return (name in staged and os.path.lexists(staged[name])) or (
            name not in removed and os.path.lexists(self.file(name))
        )

    def read(self, name: str, *, private: bool = False) -> bytes:
        """Return the content that is in force; see read_regular. Raises FileNotFoundError or FileProblem."""
        staged, removed = self._pending()
        if name in staged:
            # Another run may have moved it to its place meanwhile.
            with contextlib.suppress(FileNotFoundError):
                return read_regular(staged[name], private=private)
        if name in removed:
            raise FileNotFoundError(self.file(name))
        return read_regular(self.file(name), private=private)

    def unfinished(self) -> bool:
        """Whether a change was cut, before it became true or after."""
        return any(name.startswith(CHANGE) for name in os.listdir(self.path))

    @contextlib.contextmanager
    def lock(self, *, patience: float = PATIENCE):
        """Make the directory if there is none, keep other runs out, and finish what an earlier one left.

        Yields whether there was something to finish. Raises FileProblem, after ``patience`` seconds too, and OSError.
        """
        make_directories(self.path, mode=0o700)
        with locked(self.path, patience=patience):
            check_vault(self.path)
            yield self._finish()

    def change(self, files: dict[str, tuple[bytes, int]], remove: tuple[str, ...] = ()) -> None:
        """Give each file its content and mode, and remove others, all of it or nothing; the lock must be held.

        Raises FileProblem or OSError, until the one rename with nothing changed, and after it with the rest left to do.
        """
        for name in (*files, *remove):
            self._check_place(name)
        staged = self.file(f"{CHANGE}-{secrets.token_hex(8)}")
        try:
            os.mkdir(staged, 0o700)
            for number, (data, mode) in enumerate(files.values()):
                write_new(os.path.join(staged, str(number)), data, mode=mode)
            record = {"files": list(files), "remove": list(remove)}
            write_new(os.path.join(staged, RECORD), json.dumps(record).encode(), mode=0o600)
            fsync_dir(staged)
            os.rename(staged, self.file(CHANGE))
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        fsync_dir(self.path)
        self._finish()

    def _check_place(self, name: str) -> None:
        """Raise FileProblem when a name is taken by what a rename would not replace."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(self.file(name)).st_mode):
                raise FileProblem(f"{self.file(name)} is not a regular file: move it away")

    def _pending(self) -> tuple[dict[str, str], list[str]]:
        """Return where the contents of a change lie that is true already, and what it removes."""
        folder = self.file(CHANGE)
        try:
            record = json.loads(read_regular(os.path.join(folder, RECORD), private=True))
        except FileNotFoundError:
            return {}, []
        except ValueError as error:
            raise FileProblem(f"{folder}/{RECORD} cannot be read: {error}; restore {self.path} from a backup") from None
        staged = {name: os.path.join(folder, str(number)) for number, name in enumerate(record["files"])}
        return staged, record["remove"]

    def _finish(self) -> bool:
        """Do what is left of a change, and forget those that never became true; say whether anything was left."""
        rubbish = [name for name in os.listdir(self.path) if _STAGED.fullmatch(name)]
        for name in rubbish:
            shutil.rmtree(self.file(name))
        if not os.path.lexists(self.file(CHANGE)):
            return bool(rubbish)
        staged, removed = self._pending()
        for name, source in staged.items():
            # Missing: it was moved before the cut.
            with contextlib.suppress(FileNotFoundError):
                os.rename(source, self.file(name))
        for name in removed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(name))
        fsync_dir(self.path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.file(CHANGE), RECORD))
        os.rmdir(self.file(CHANGE))
        fsync_dir(self.path)
        return True
