# SPDX-License-Identifier: Apache-2.0
"""Who goes out by the host's files gets there, and nobody but root reads the password."""

import json

ROOT = "/var/lib/firstlight/network"
SECRET = "hunter2"


def test_a_shell_that_sources_it_has_the_quick_hub_without_xet_and_no_password(host):
    said = host.check_output(". %s/env.sh; env" % ROOT)
    assert "HF_ENDPOINT=http://hub.example.org\n" in said + "\n"
    assert "HF_HUB_DISABLE_XET=1\n" in said + "\n"
    assert SECRET not in said


def test_whoever_has_the_variables_reads_the_hub_through_the_proxy(host):
    said = host.check_output(
        "set -a; . %s/environment; curl --silent --show-error --include --range 0-9 "
        "$HF_ENDPOINT/org/name/resolve/main/a" % ROOT)
    assert "X-Repo-Commit: " in said


def test_the_password_is_in_files_that_root_alone_reads(host):
    found = host.check_output(
        "grep --recursive --files-with-matches %s /etc /var/lib/firstlight "
        "--exclude=network_turbo" % SECRET).split()
    assert set(found) == {"/etc/apt/apt.conf.d/95firstlight-proxy", ROOT + "/environment",
                          ROOT + "/decision.json"}
    assert {host.file(path).mode for path in found} == {0o600}
    assert host.file("/etc/environment").contains('HF_ENDPOINT="http://hub.example.org"')
    assert host.file("/etc/environment").mode == 0o640


def test_apt_takes_a_package_from_the_mirror_and_leaves_the_lists_of_others(host):
    updated = host.run("apt-get update")
    # What others' lists name does not answer, before as after.
    assert "127.0.0.1:8105/debian" in updated.stdout
    assert "Failed to fetch http://127.0.0.2:9/linux/debian" in updated.stderr
    assert "Failed to fetch http://127.0.0.1:8105" not in updated.stderr
    host.check_output("apt-get install --yes --reinstall dear")
    assert host.package("dear").version == "1.0"
    host.check_output("apt-get purge --yes dear")
    assert host.file("/etc/apt/sources.list").contains("http://127.0.0.2:9/debian ")
    copy = ROOT + "/apt/sources.list.d/"
    assert host.file(copy + "others.list").linked_to == "/etc/apt/sources.list.d/others.list"
    assert host.file(copy + "security.sources").contains("8105/debian-security")


def test_a_user_can_ask_apt(host):
    said = host.run("su someone -c 'apt-cache policy dear'")
    assert said.rc == 0, said.stderr
    assert "1.0" in said.stdout


def test_what_was_found_of_each_candidate_is_kept_with_why(host):
    decided = json.loads(host.file(ROOT + "/decision.json").content_string)["decision"]
    found = {(one["kind"], one["url"].rpartition(":")[2]): one["verdict"]
             for one in decided["measured"]}
    assert found == {
        ("hub", "9"): "dead", ("hub", "8103"): "wrong", ("hub", "8102"): "slow",
        ("hub", "//hub.example.org"): "ok", ("pip", "8103/simple"): "wrong",
        ("pip", "8104/simple"): "ok", ("apt", "8103/debian"): "wrong",
        ("apt", "8105/debian"): "ok", ("registry", "8103"): "wrong", ("registry", "8106"): "ok"}
    assert decided["registry"] == ["http://127.0.0.1:8106"]
