# SPDX-License-Identifier: Apache-2.0
"""A wheel is believed nothing: not its name, its paths, its sizes, nor what it says of itself."""

from __future__ import annotations

import re
import stat
import struct
import zipfile

import pytest
from wheels import builder

from ansible.module_utils.firstlight.wheels import archive


def judged(path, name=None, sha256=None):
    return archive.judge(str(path), name or path.name, sha256 or builder.sha256(path))


def refused(path, **how):
    """The one finding against a wheel."""
    found, findings = judged(path, **how)
    assert found is None
    (one,) = findings
    assert one["severity"] == "error" and one["wanted"] and one["remedy"]
    return one


def good(folder, package="tiny-kernel", version="2.0", **options):
    return builder.wheel(folder, package, version, **options)


def again(path, change=lambda name, content: content, more=(), drop=()):
    """Write a wheel again with members changed; RECORD stays as it was."""
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist() if name not in drop]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in [*members, *more]:
            member = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            new.writestr(member, change(member.filename, content))
    return path


def test_a_whole_wheel_tells_what_it_is(tmp_path):
    path = builder.wheel(
        tmp_path, "Tiny_Kernel", "2.0", "cu128torch2.8", tags="cp39.cp310-abi3-linux_x86_64",
        requires=["torch>=2", "ninja; extra == 'dev'"], requires_python=">=3.9",
        files={"tiny_kernel-2.0+cu128torch2.8.dist-info/entry_points.txt":
               "[console_scripts]\ntiny = a:b\n[gui_scripts]\ngui = a:c\n[other]\nno = x:y\n"})
    found, findings = judged(path)
    assert findings == []
    assert (found.package, found.version, found.pure) == ("tiny-kernel", "2.0+cu128torch2.8", False)
    assert found.requires == ["torch>=2", "ninja; extra == 'dev'"]
    assert found.requires_python == ">=3.9" and found.scripts == ["gui", "tiny"]
    assert found.tags == ["cp39-abi3-linux_x86_64", "cp310-abi3-linux_x86_64"]
    with zipfile.ZipFile(path) as members:
        assert found.members == members.namelist()
        assert found.size == sum(one.file_size for one in members.infolist())
    assert set(found.record) == set(found.members) - {found.info + "/RECORD"}


@pytest.mark.parametrize("fault, wanted, says", [
    ("truncated", "wheel-broken", "cannot be read"),
    ("bad_hash", "wheel-record", "tiny_kernel/__init__.py"),
    ("renamed", "wheel-metadata", "2.0.999"),
    ("traversal", "wheel-unsafe", "../../firstlight-escaped"),
    ("absolute", "wheel-unsafe", "/tmp/firstlight-escaped"),
    ("symlink", "wheel-unsafe", "tiny_kernel/link"),
    ("duplicate", "wheel-unsafe", "twice"),
    ("wrong_tags", "wheel-tags", "cp27-cp27mu"),
    ("bomb", "wheel-too-large", str(builder.BOMB)[:4]),
    ("no_record", "wheel-record", "RECORD"),
])
def test_a_wheel_that_is_no_good(tmp_path, fault, wanted, says):
    one = refused(good(tmp_path, broken=fault))
    assert one["id"] == wanted and says in one["found"], one


def test_another_file_than_was_promised(tmp_path):
    one = refused(good(tmp_path), sha256="0" * 64)
    assert one["id"] == "wheel-hash" and one["wanted"] == "SHA-256 " + "0" * 64


def test_a_file_by_another_name(tmp_path):
    path = good(tmp_path, tags="cp311-cp311-linux_x86_64")
    for name, wanted in (
            ("tiny_kernel-2.1-cp311-cp311-linux_x86_64.whl", "wheel-metadata"),
            ("other-2.0-cp311-cp311-linux_x86_64.whl", "wheel-metadata"),
            ("tiny_kernel-2.0+cu99-cp311-cp311-linux_x86_64.whl", None),
            ("tiny_kernel-2.0-cp312-cp312-linux_x86_64.whl", "wheel-tags"),
            ("tiny_kernel-2.0-cp311-cp311-linux_aarch64.whl", "wheel-tags"),
            ("tiny_kernel-2.0-cp311-cp311-manylinux_2_28_x86_64.whl", None),
            ("tiny_kernel-2.0-1-cp311-cp311-linux_x86_64.whl", None),
            ("tiny_kernel.whl", "wheel-name"), ("tiny_kernel-2.0.tar.gz", "wheel-name")):
        found, findings = judged(path, name=name)
        assert [one["id"] for one in findings] == ([wanted] if wanted else []), name
        assert (found is None) == bool(wanted), name


@pytest.mark.parametrize("one, other, same", [
    ("2.8", "2.8.0", True), ("2.8.0+cu12.torch2.8", "2.8.0+cu12_torch2.8", True),
    ("v1.0", "1.0", True), ("1.0.POST1", "1.0.post1", True), ("2.8", "2.80", False),
    ("2.8+a", "2.8", False), ("10", "1", False), ("2024.01.2", "2024.1.2", True),
    ("1.0-alpha.1", "1.0a1", True), ("1.0c1", "1.0rc1", True), ("1.0a", "1.0a0", True),
    ("1.0-1", "1.0.post1", True), ("1.0.rev2", "1.0.post2", True), ("1_0", "1.0", False),
    ("1.0.dev01", "1.0dev1", True), ("0!1.0", "1", True), ("1!1.0", "1.0", False),
    ("1.0a1", "1.0.post1", False), ("1.0a1.dev2", "1.0a12", False), ("1+01.A", "1+1.a", True),
    ("1.0.post", "1.0.post0", True), ("1.0a1", "1.0", False), ("0.0", "0", True),
    ("9" * 5000 + ".0", "9" * 5000, True), ("of.the.moon", "of.the.moon", True)])
def test_versions_that_are_one(one, other, same):
    assert archive.same_version(one, other) is same


def named(name, mode=stat.S_IFREG | 0o644, flags=0):
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    member.flag_bits = flags
    return member


@pytest.mark.parametrize("member", [
    named("tiny_kernel/../../x"), named("..\\x"), named("C:/x"), named("./x"), named("a//x"),
    named("tiny_kernel/new\nline"), named("x" * 300), named("tiny_kernel/__init__.py/x"),
    named("tiny_kernel/fifo", stat.S_IFIFO | 0o644), named("tiny_kernel/dev", stat.S_IFBLK),
    named("tiny_kernel-2.0.data/scripts"), named("tiny_kernel-2.0.data/root/etc/x"),
    named("other-1.0.data/scripts/x")], ids=lambda one: one.filename[:30])
def test_members_that_lead_elsewhere(tmp_path, member):
    path = again(good(tmp_path), more=[(member, b"x")])
    assert refused(path)["id"] == "wheel-unsafe"


def test_a_name_with_a_hidden_end(tmp_path):
    path = again(good(tmp_path), more=[("tiny_kernel/a.pyXb", b"x")])
    path.write_bytes(path.read_bytes().replace(b"a.pyXb", b"a.py\0b"))
    assert refused(path)["id"] == "wheel-unsafe"


def test_an_encrypted_member(tmp_path):
    path = good(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 8
    content[at:at + 2] = struct.pack("<H", struct.unpack("<H", content[at:at + 2])[0] | 1)
    path.write_bytes(content)
    assert refused(path)["id"] == "wheel-unsafe"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_is_compressed_as_no_wheel_is(tmp_path, method):
    path = good(tmp_path)
    with zipfile.ZipFile(path) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    # All is as RECORD says: pip would take it where Python has that method.
    with zipfile.ZipFile(path, "w", method) as new:
        for name, content in members:
            new.writestr(name, content)
    one = refused(path)
    assert one["id"] == "wheel-unsafe" and "compressed" in one["found"]


def test_members_over_one_another(tmp_path):
    """One compressed stream that several members share, so that a small file becomes a large."""
    path = again(good(tmp_path), more=[("tiny_kernel/%d" % n, bytes(2**20)) for n in (1, 2)])
    content = path.read_bytes()
    with zipfile.ZipFile(path) as members:
        kept = members.getinfo("tiny_kernel/1")
    # The directory says of the second that it is as long as the whole file.
    at = content.index(b"tiny_kernel/2", content.index(b"PK\x01\x02")) - 46 + 20
    path.write_bytes(content[:at] + struct.pack("<I", len(content)) + content[at + 4:])
    assert kept.compress_size
    assert refused(path)["id"] == "wheel-unsafe"


def test_a_member_that_is_larger_than_it_says(tmp_path):
    path = good(tmp_path, files={"tiny_kernel/data": b"a" * 5000})
    content = path.read_bytes()
    at = content.index(b"tiny_kernel/data", content.index(b"PK\x01\x02")) - 46 + 24
    assert struct.unpack("<I", content[at:at + 4]) == (5000,)
    path.write_bytes(content[:at] + struct.pack("<I", 50) + content[at + 4:])
    assert refused(path)["id"] in ("wheel-broken", "wheel-record")


def test_sizes_without_end(tmp_path, monkeypatch):
    path = good(tmp_path, files={"tiny_kernel/data": bytes(1000)})
    monkeypatch.setattr(archive, "MOST_BYTES", 500)
    assert refused(path)["id"] == "wheel-too-large"
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 2)
    assert refused(path)["id"] == "wheel-unsafe"
    monkeypatch.setattr(archive, "MOST_MEMBERS", 100)
    monkeypatch.setattr(archive, "MOST_TEXT", 20)
    assert refused(path)["id"] == "wheel-too-large"
    monkeypatch.setattr(archive, "MOST_TEXT", 2**20)
    assert judged(path)[1] == []


INFO = "tiny_kernel-2.0.dist-info/"


@pytest.mark.parametrize("member, old, new, wanted", [
    ("METADATA", "Name: tiny-kernel", "Name: other", "wheel-metadata"),
    ("METADATA", "Version: 2.0", "Version: 3.0", "wheel-metadata"),
    ("METADATA", "Version: 2.0", "Version: 2.0\nVersion: 3.0", "wheel-metadata"),
    ("METADATA", "Name: tiny-kernel", "Title: none", "wheel-metadata"),
    ("WHEEL", "Wheel-Version: 1.0", "Wheel-Version: 2.0", "wheel-metadata"),
    ("WHEEL", "Wheel-Version: 1.0\n", "", "wheel-metadata"),
    ("WHEEL", "Tag: .*", "", "wheel-tags"),
    ("RECORD", "tiny_kernel/__init__.py.*\n", "", "wheel-record"),
    ("RECORD", "sha256=", "md5=", "wheel-record"),
    ("RECORD", "(tiny_kernel/__init__.py.*\n)", r"\1\1", "wheel-record"),
    ("RECORD", r"\A", "tiny_kernel/lost.py,sha256=x,1\n", "wheel-record"),
    ("RECORD", r"(__init__.py,.*),\d+", r"\1,3", "wheel-record"),
    ("RECORD", "sha256=[^,]*", "sha256=~", "wheel-record"),
], ids=str)
def test_what_a_wheel_says_of_itself(tmp_path, member, old, new, wanted):
    def change(name, content):
        if name != INFO + member:
            return content
        text = content.decode()
        changed = re.sub(old, new, text, count=1)
        assert changed != text
        return changed.encode()

    assert refused(again(good(tmp_path), change))["id"] == wanted


@pytest.mark.parametrize("lacking", ["METADATA", "WHEEL", "RECORD"])
def test_what_is_missing(tmp_path, lacking):
    one = refused(again(good(tmp_path), drop=[INFO + lacking]))
    assert INFO + lacking in one["found"]


def test_two_packages_in_one(tmp_path):
    path = again(good(tmp_path), more=[("other-1.0.dist-info/METADATA", b"Name: other\n")])
    assert refused(path)["id"] == "wheel-metadata"


@pytest.mark.parametrize("text", [
    "[console_scripts]\n../../x = a:b\n", "[gui_scripts]\n/bin/x = a:b\n",
    "[console_scripts]\n.. = a:b\n"])
def test_programs_that_would_lie_elsewhere(tmp_path, text):
    path = good(tmp_path, files={INFO + "entry_points.txt": text})
    assert refused(path)["id"] == "wheel-unsafe"


def test_entry_points_that_are_no_text_of_that_kind(tmp_path):
    path = good(tmp_path, files={INFO + "entry_points.txt": "no section\n"})
    assert refused(path)["id"] == "wheel-metadata"


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>404</html>", bytes(1000)])
def test_what_is_no_archive_at_all(tmp_path, content):
    path = tmp_path / "tiny_kernel-2.0-py3-none-any.whl"
    path.write_bytes(content)
    assert refused(path)["id"] == "wheel-broken"


def test_bytes_that_flipped_anywhere_are_found(tmp_path):
    """Whatever changes in what is installed, RECORD or the archive tells."""
    path = good(tmp_path, files={"tiny_kernel/data": bytes(range(256)) * 20})
    content = path.read_bytes()
    whole = judged(path)[0]
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1:])
        found, findings = judged(path)
        # Times and the like may differ; what is installed may not.
        assert findings or found._replace(size=whole.size) == whole, at
