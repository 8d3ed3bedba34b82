"""A bundle is bounded and in order, and says what is in it."""

from __future__ import annotations

import io
import itertools
import tarfile

from netagent import errors
from netagent.bundle import archive


def unpacked(packed: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def pack(made: archive.Archive) -> dict[str, str]:
    return unpacked(made.packed(directory="d", heading=["made by a test"], seconds=1000))


def test_files_come_by_name_after_the_manifest_and_the_same_content_gives_the_same_bytes() -> None:
    def made(*names: str) -> bytes:
        collected = archive.Archive()
        for name in names:
            collected.add(name, f"made as {name}", f"content of {name}\n")
        return collected.packed(directory="d", heading=["x"], seconds=1000)

    assert made("b", "a/c", "a") == made("a", "b", "a/c")
    assert list(unpacked(made("b", "a"))) == ["d/MANIFEST.txt", "d/a", "d/b"]


def test_a_collector_that_fails_costs_its_own_file_and_is_named_in_the_manifest() -> None:
    def broken() -> str:
        raise errors.PrivilegeError("no right, and token: S3cr3t")

    def surprised() -> str:
        raise ZeroDivisionError

    made = archive.Archive()
    made.collect("tables.txt", "read over netlink", broken)
    made.collect("odd.txt", "somehow", surprised)
    made.collect("good.txt", "by hand", lambda: iter(("one", "two")))
    files = pack(made)
    assert files["d/good.txt"] == "one\ntwo\n"
    assert "d/tables.txt" not in files
    manifest = files["d/MANIFEST.txt"]
    assert manifest.startswith("made by a test\n")
    assert "tables.txt: no right, and token: [removed]" in manifest
    assert "odd.txt: ZeroDivisionError" in manifest
    assert "good.txt: 8 bytes; by hand" in manifest


def test_a_file_that_is_too_large_is_cut_and_the_manifest_says_so() -> None:
    made = archive.Archive(file_bytes=10, total_bytes=25)
    made.add("head", "x", "0123456789abcdef")
    made.add("tail", "x", "0123456789abcdef", keep=archive.Keep.TAIL)
    made.add("what-is-left", "x", "0123456789")
    made.add("nothing-left", "x", "0123456789")
    files = pack(made)
    assert files["d/head"] == "0123456789"
    assert files["d/tail"] == "6789abcdef"
    assert files["d/what-is-left"] == "01234"
    assert files["d/nothing-left"] == ""
    assert "head: 10 bytes; x; cut: only the first 10 bytes are here" in files["d/MANIFEST.txt"]
    assert "tail: 10 bytes; x; cut: only the last 10 bytes are here" in files["d/MANIFEST.txt"]


def test_a_secret_is_taken_out_before_a_file_is_cut() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "S3cr3tLine\n" * 20 + "-----END PRIVATE KEY-----\n"
    made = archive.Archive(file_bytes=100)
    made.add("journal", "x", "before\n" + key, keep=archive.Keep.TAIL)
    assert "S3cr3t" not in pack(made)["d/journal"]


def test_of_endless_lines_no_more_is_taken_than_fits() -> None:
    made = archive.Archive(file_bytes=100)
    made.add("endless", "x", (f"line {number}" for number in itertools.count()))
    assert pack(made)["d/endless"].startswith("line 0\nline 1\n")
    assert made.files[0].note


def test_documents_are_json_with_sorted_keys_and_bytes_need_not_be_utf_8() -> None:
    made = archive.Archive()
    made.add("a.json", "x", {"b": 1, "a": {"token": "S3cr3t"}})
    made.add("b.txt", "x", b"caf\xe9\n")
    files = pack(made)
    assert files["d/a.json"] == '{\n  "a": {\n    "token": "[removed]"\n  },\n  "b": 1\n}\n'
    assert files["d/b.txt"] == "caf\\xe9\n"
