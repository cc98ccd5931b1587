"""Where child processes of a test lay down keys and values: a folder."""

from __future__ import annotations

import pickle
import secrets
from pathlib import Path

from baton.kv.parcel import Parcel


class FolderDepot:
    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def put(self, parcel: Parcel) -> str:
        path = self._folder / secrets.token_hex(8)
        path.write_bytes(pickle.dumps((parcel.header, list(parcel.parts))))
        return str(path)

    def get(self, where: str) -> Parcel:
        path = Path(where)
        header, parts = pickle.loads(path.read_bytes())
        path.unlink()
        # Bytes of a pickle cannot be written to, and torch wants to be able to.
        return Parcel(header, [part.copy() for part in parts])
