# SPDX-License-Identifier: Apache-2.0
"""Faults in the middle of a change of a whole fleet: who is not hit is done in the same run.

Every test takes the fleet serving and resting, changes the context of all endpoints, and leaves
the fleet serving and resting with the other context.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import tempfile

import pytest
from fleet import NEW, OLD, ROOT, Fleet
from place import output, until

pytestmark = pytest.mark.timeout(900)
TABLE = "A fleet of four"
NAMES = ["one", "two", "three", "four"]
RUN_S = 400
"""How long a run may take to come to its switches."""


@pytest.fixture(scope="module")
def made():
    """Four hosts that serve and rest, and what is on them then."""
    # A short path: unix sockets have little room.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fl-faults-", dir="/tmp"))
    fleet = Fleet(folder, NAMES)
    try:
        fleet.make()
        assert fleet.play(OLD).ok
        rests(fleet, OLD)
        fleet.context, fleet.rest = OLD, fleet.kinds()
        yield fleet
    finally:
        fleet.remove()
        shutil.rmtree(folder)


@pytest.fixture
def fleet(made):
    """It, and the context that is wanted next."""
    made.wanted = NEW if made.context == OLD else OLD
    yield made
    made.context = made.wanted


def rests(fleet, context, *arguments):
    """A run that finds nothing to do."""
    run = fleet.play(context, *arguments)
    assert run.ok, run.output
    assert {host: counts["changed"] for host, counts in run.recap().items()} == dict.fromkeys(
        run.recap(), 0), run.output


def ends_clean(fleet, hit=()):
    """The rerun: it ends well, changes nothing where all was done, and then there is nothing to do.

    Returns what it changed on the hosts that were hit, in words.
    """
    done = [member.host for member in fleet if member.passport()["plan"]["context"] == fleet.wanted]
    run = fleet.play(fleet.wanted)
    assert run.ok, run.output
    for host in done:
        # Its report may be due.
        assert stages_that_changed(run, host) <= {"host_report"}, run.output
    changed = {host: counts["changed"] for host, counts in run.recap().items()}
    assert set(changed) == set(NAMES)
    assert [host for host in changed if changed[host] and host not in hit] == [], run.output
    again = [host for host in hit if changed[host]]
    if again:
        rests(fleet, fleet.wanted, "--limit", ",".join(again))
    for member in fleet:
        assert member.whole() == fleet.wanted
    assert "\n".join(fleet.strange()) == ""
    figures = ", ".join("%s: changed=%d" % (host, changed[host]) for host in hit)
    return (figures + ", then 0" if again else "changed=0") if hit else "changed=0"


def begun(*members):
    """Wait until all of these are in the middle of their switches at once."""
    until(lambda: all(member.at_work() for member in members), "switches under way", RUN_S)


def stages_that_changed(run, host):
    """The roles in which a host was changed, as the run tells it."""
    return set(re.findall(r"^%s +(\S+) +changed " % host, run.output, re.MULTILINE))


def others_are_done(fleet, run, hit):
    """Everybody else has the change, by the recap and in truth."""
    for host, counts in run.recap().items():
        if host not in hit:
            assert (counts["failed"], counts["unreachable"]) == (0, 0), run.output
            assert counts["changed"], run.output
            assert fleet[host].whole() == fleet.wanted
    assert set(run.recap()) == set(NAMES)


def gaps(clients, but=()):
    """Wait until everybody answers; the longest time without an answer, in words.

    A native engine takes the port of the one before it, so there is one.
    """
    asked = {host: client for host, client in clients.items() if host not in but}
    for host, client in asked.items():
        client.back()
        # It may be away for a moment, and says nothing wrong.
        assert not [one for one in client.wrong if "another answer" in one], host
    return "silent for %.1f s at most" % max(client.gap_s for client in asked.values())


def test_a_controller_that_is_killed(fleet, tell):
    with fleet.asked() as clients:
        run = fleet.begin(fleet.wanted)
        begun(*fleet)
        run.kill()
        for member in fleet:
            until(lambda member=member: not member.at_work(), "an end of the switch")
            assert member.whole() == fleet.wanted
        silent = gaps(clients)
    tell("the controller is killed in mid-switch", "nothing: it was killed",
         "%s; every switch ended by itself" % silent, ends_clean(fleet, NAMES))


def test_hosts_that_hang(fleet, tell):
    frozen, mute = fleet["two"], fleet["three"]
    hit = [frozen.host, mute.host]
    with fleet.asked() as clients:
        run = fleet.begin(fleet.wanted)
        begun(frozen, mute)
        frozen.machine.pause()
        try:
            # The host is well, and its sshd says nothing any more.
            sessions = mute.shell("pgrep", "-f", "^sshd: root@").split()
            mute.shell("kill", "-STOP", *sessions)
            # Without what ansible.cfg says of ssh it would not end.
            assert not run.ok, run.output
        finally:
            frozen.machine.unpause()
        mute.shell("kill", "-CONT", *sessions)
        clients[frozen.host].back()
        for member in fleet:
            until(lambda member=member: not member.at_work(), "an end of the switch")
        silent = gaps(clients, but=[frozen.host])
    others_are_done(fleet, run, hit)
    assert all(run.recap()[host]["unreachable"] == 1 for host in hit), run.output
    assert "run again with --limit three,two\n" in run.output, run.output
    told = ends_clean(fleet, hit)
    tell("one host hangs, the sshd of another", run.reason_of(frozen.host),
         "the frozen one's answered again when it went on, after %.0f s; the others' %s"
         % (clients[frozen.host].gap_s, silent), told)


def test_a_host_that_dies_and_ssh_that_is_cut(fleet, tell):
    dead, cut = fleet["one"], fleet["four"]
    hit = [dead.host, cut.host]
    with fleet.asked() as clients:
        run = fleet.begin(fleet.wanted)
        begun(dead, cut)
        dead.machine.kill()
        cut.machine.cut()
        assert not run.ok, run.output
        dead.machine.boot()
        dead.way()
        clients[dead.host].back()
        before = dead.passport()["plan"]["context"]
        until(lambda: not cut.at_work(), "an end of the switch")
        silent = gaps(clients, but=[dead.host])
    others_are_done(fleet, run, hit)
    assert all(run.recap()[host]["unreachable"] == 1 for host in hit), run.output
    assert "run again with --limit four,one\n" in run.output, run.output
    assert cut.whole() == fleet.wanted
    told = ends_clean(fleet, hit)
    tell("one host dies, and of another ssh is cut",
         "%s / %s" % (run.reason_of(dead.host), run.reason_of(cut.host)),
         "the dead one's was back with its boot (%s); the others' %s"
         % ("the new one" if before == fleet.wanted else "the old one", silent), told)


def test_a_disk_that_is_full(fleet, tell):
    full = fleet["two"]
    full.shell("sh", "-c", SMALL_DISK)
    try:
        with fleet.asked() as clients:
            run = fleet.begin(fleet.wanted)
            begun(full)
            full.shell("sh", "-c", "cat /dev/zero > %s/filler 2>/dev/null || true" % ROOT)
            assert not run.ok, run.output
            clients[full.host].back()
            before = full.passport()["plan"]["context"]
            full.shell("rm", ROOT + "/filler")
            silent = gaps(clients, but=[full.host])
        others_are_done(fleet, run, [full.host])
        assert run.recap()[full.host]["failed"] == 1
        assert "No space left on device" in run.reason_of(full.host)
        assert before == fleet.context
        told = ends_clean(fleet, [full.host])
    finally:
        full.shell("sh", "-c", LARGE_DISK)
    tell("the disk of one host fills up in mid-switch", run.reason_of(full.host),
         "the full one's %s; the others' %s" % (clients[full.host].told, silent), told)


SWAP = """
set -e
units=$(cd /etc/systemd/system && ls firstlight-*.service)
systemctl stop $units
%s
systemctl start $units
"""
SMALL_DISK = SWAP % f"""
mv {ROOT} {ROOT}.large
mkdir {ROOT}
mount -t tmpfs -o size=400m,mode=755 tmpfs {ROOT}
cp -a {ROOT}.large/. {ROOT}
"""
LARGE_DISK = SWAP % f"""
cp -a {ROOT} {ROOT}.copy
umount {ROOT}
rm -r {ROOT}.large
rmdir {ROOT}
mv {ROOT}.copy {ROOT}
"""


def test_two_controllers_at_once(fleet, tell, tmp_path):
    with fleet.asked() as clients:
        runs = [fleet.begin(fleet.wanted, host_report_directory=str(tmp_path / one))
                for one in ("first", "second")]
        refused = {host: run for run in runs if not run.ok
                   for host, counts in run.recap().items() if counts["failed"]}
        assert len(refused) == sum(counts["failed"] for run in runs
                                   for counts in run.recap().values()), "a host that both failed"
        silent = gaps(clients)
    for host, run in refused.items():
        assert "another run is at it" in run.reason_of(host), run.output
    for member in fleet:
        assert member.whole() == fleet.wanted
    told = ends_clean(fleet, NAMES)
    tell("two controllers at once", "%d of 8 times a host was refused: %s" % (
        len(refused), next(run.reason_of(host) for host, run in refused.items()))
        if refused else "both ended well", silent, told)


def test_reports_that_cannot_be_written(fleet, tell):
    reports = fleet.folder / "read-only"
    reports.mkdir()
    output(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(reports)])
    try:
        with fleet.asked() as clients:
            run = fleet.play(fleet.wanted, host_report_directory=str(reports))
            silent = gaps(clients)
    finally:
        output(["umount", str(reports)])
    for member in fleet:
        assert member.whole() == fleet.wanted
    assert "Read-only file system" in run.output and str(reports) in run.output, run.output
    assert run.ok, run.output
    tell("the controller cannot write its reports", "proven; a warning tells of the folder", silent,
         ends_clean(fleet, NAMES))
