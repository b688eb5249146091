#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Record what a tool says on a real machine, for tests to replay: see ``transcripts.py``.

On the machine, with any Python 3.9 that has PyYAML and a copy of this file::

    python3 record_transcript.py nvidia-smi.yml --machine "one NVIDIA H200" -- nvidia-smi -L

A new file gets the machine, the system and the date as its header; a later call is added to the
file, which must be of the same system. What is recorded is kept as it was said: read the file
before you publish it, for serial numbers and for names of people, hosts and networks.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import os
import pathlib
import platform
import pwd
import shlex
import subprocess
import sys

import yaml

HEADER = ("machine", "system", "recorded", "calls")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a change of a recording reads well."""

    def analyze_scalar(self, scalar):
        analysis = super().analyze_scalar(scalar)
        # PyYAML also quotes for a tab or for a space at the end of a line; a block keeps both.
        analysis.allow_block = "\n" in scalar and all(
            one.isprintable() or one in "\n\t" for one in scalar)
        return analysis

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


class _Words(list):
    """An argv, written on one line."""


_Dumper.add_representer(
    _Words, lambda dumper, words: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", words, flow_style=True))
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def text_of(transcript):
    """A transcript as its file holds it; reading that gives the transcript again."""
    calls = [dict(call, argv=_Words(call["argv"])) for call in transcript["calls"]]
    text = yaml.dump(dict(transcript, calls=calls), Dumper=_Dumper, sort_keys=False, width=100,
                     allow_unicode=True, explicit_start=True)
    assert yaml.safe_load(text) == transcript, "PyYAML does not read what it wrote"
    return text


def ask(argv, timeout_s):
    """Run a tool as our modules do, and give the call as a transcript holds it."""
    call = {"argv": list(argv)}
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=dict(os.environ, LC_ALL="C"),
                              timeout=timeout_s, check=False)
    except OSError as problem:
        return dict(call, cannot_start=errno.errorcode[problem.errno])
    except subprocess.TimeoutExpired:
        return dict(call, times_out=True)
    return dict(call, rc=done.returncode, stdout=_text(done.stdout), stderr=_text(done.stderr))


def _text(said):
    """What was said, read as our modules read it."""
    return said.decode("utf-8", "replace")


def system():
    """The distribution, kernel and processor that this runs on."""
    release = {}
    for line in pathlib.Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        release[key] = value.strip("\"'")
    return "%s, Linux %s, %s" % (release["PRETTY_NAME"], platform.release(), platform.machine())


def record(file, argv, machine="", again=False, timeout_s=60.0):
    """Ask the tool and add its answer to the file."""
    here = system()
    if file.exists():
        transcript = yaml.safe_load(file.read_text(encoding="utf-8"))
        if transcript["system"] != here:
            sys.exit("%s was recorded on %s and this is %s: take another file"
                     % (file, transcript["system"], here))
    elif machine:
        transcript = {
            "machine": machine,
            "system": here,
            "recorded": "%s as %s, by record_transcript.py" % (
                datetime.date.today(), pwd.getpwuid(os.geteuid()).pw_name),
            "calls": [],
        }
    else:
        sys.exit("%s is new: say with --machine what machine this is" % file)
    if not again and any(call["argv"] == argv for call in transcript["calls"]):
        sys.exit("%s holds `%s` already: with --again it is added once more, for a replay in order"
                 % (file, shlex.join(argv)))
    call = ask(argv, timeout_s)
    transcript["calls"].append(call)
    file.write_text(text_of(transcript), encoding="utf-8")
    return call


def main():
    """Read the command line and record one call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path, help="the transcript, made when it is new")
    parser.add_argument("--machine", default="", help="what machine this is, for a new file")
    parser.add_argument("--again", action="store_true", help="add a call that is there already")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds the tool may take")
    parser.add_argument("argv", nargs="+", help="after --: the program and its arguments")
    given = parser.parse_args()
    call = record(given.file, given.argv, given.machine, given.again, given.timeout)
    said = {key: value for key, value in call.items() if key not in ("argv", "stdout", "stderr")}
    print("%s: %s" % (shlex.join(given.argv), said))


if __name__ == "__main__":
    main()
