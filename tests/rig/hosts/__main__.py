# SPDX-License-Identifier: Apache-2.0
"""Hosts in containers, for molecule: a Docker engine, and images that no registry is needed for.

``python3 tests/rig/hosts images`` brings the engine and the images of the hosts, or those that are
named, ``engines`` those of real inference engines, which stand in for upstream's; both do nothing
where they are there.
CPU builds of torch come from where this machine's pip looks, else from the PyTorch project's index;
FIRSTLIGHT_TORCH_INDEX names another.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import fcntl
import hashlib
import io
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RECIPE = HERE / "image.sh"
BARE = "python3,python3-venv,python3-apt,ca-certificates,iproute2,procps,curl"
HOST = "systemd,systemd-sysv,dbus,openssh-server,sudo," + BARE
BOOTS = ('CMD ["/lib/systemd/systemd"]',)
# Images from packages alone: the suite, its packages, and what a Dockerfile would say besides.
IMAGES = {
    "firstlight-host:debian12": ("bookworm", HOST, BOOTS),
    "firstlight-host:debian13": ("trixie", HOST, BOOTS),
    "firstlight-host:debian12-docker": ("bookworm", HOST + ",docker.io,iptables", BOOTS),
    # There the client is a package of its own.
    "firstlight-host:debian13-docker": ("trixie", HOST + ",docker.io,docker-cli,iptables", BOOTS),
    # An engine of the host's owner, which no release of Debian has yet. The systemd beside it does
    # not start on machines with control groups of version 1, so this is a host without.
    "firstlight-host:sid-llama-server": (
        "sid", BARE + ",llama.cpp-tools", ('CMD ["sleep", "infinity"]',)),
    # As upstream's: where it works, and a check that knows nothing of how long a model loads.
    "firstlight-engine:llama-server": (
        "sid", "llama.cpp-tools,ca-certificates,curl",
        ("WORKDIR /app", 'HEALTHCHECK CMD ["curl", "-f", "http://localhost:8080/health"]',
         'CMD ["llama-server"]')),
}
# The image that no package brings, its recipe and the versions that it holds to, and on what it is
# laid. The image decides neither user nor entry point, as the commands of endpoints do.
VLLM = "firstlight-engine:vllm-cpu"
VLLM_RECIPE = (HERE / "vllm_cpu.sh", HERE / "vllm_cpu.txt")
VLLM_BASE = "firstlight-host:debian12"
VLLM_CHANGES = ("WORKDIR /vllm-workspace",
                "ENV PATH=/opt/vllm/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                'CMD ["vllm", "--help"]')
BUILD = "firstlight-rig-build"
MADE = [*IMAGES, VLLM]
HOSTS = [name for name in MADE if name.startswith("firstlight-host:")]
ENGINES = [name for name in MADE if name.startswith("firstlight-engine:")]
TORCH_INDEX = "FIRSTLIGHT_TORCH_INDEX"
LABEL = "firstlight.rig=host"
ROOT = os.geteuid() == 0
# What is ours of this machine's Docker engine: its pid where we started it, its log, a lock.
STATE = pathlib.Path("/var/run/firstlight-rig" if ROOT else
                     "%s/firstlight-rig-%d" % (tempfile.gettempdir(), os.getuid()))
PID = STATE / "dockerd.pid"
LOG = STATE / "dockerd.log"
INOTIFY = pathlib.Path("/proc/sys/fs/inotify/max_user_instances")
INSTANCES = 1024
CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")


class Missing(Exception):
    """What this machine would need, in words for whoever sits before it."""

    status = 1


class NotHere(Missing):
    """No engine answers and none can be brought, or no image be built: hosts are not to be had."""

    status = 3


# --- The engine -----------------------------------------------------------------------------


def docker(*words, **options):
    """Call the client."""
    return subprocess.run(["docker", *words], text=True, capture_output=True, **options)


def engine():
    """The version of the engine that answers, or nothing."""
    if not shutil.which("docker"):
        return ""
    answer = docker("info", "--format", "{{.ServerVersion}}")
    return answer.stdout.strip() if answer.returncode == 0 else ""


def prepare():
    """Have an engine that answers; one that does already is never touched."""
    version = engine()
    if not version:
        if os.environ.get("DOCKER_HOST"):
            raise Missing("The engine that DOCKER_HOST names does not answer (docker info).")
        missing = []
        if not ROOT:
            missing.append("root")
        if not shutil.which("apt-get"):
            missing.append("a Debian or Ubuntu to install it on")
        if missing:
            raise NotHere("No Docker engine answers (docker info), and to bring one needs %s. "
                          "Start one, or say which: DOCKER_HOST." % " and ".join(missing))
        have("dockerd", "docker.io", "iptables")
        version = engine() or start()
    if ROOT and int(INOTIFY.read_text()) < INSTANCES:
        # Each systemd takes a few, and all containers share what the kernel gives one user.
        INOTIFY.write_text("%d\n" % INSTANCES)
    return version


def have(command, *packages):
    """Have a command, which these packages bring."""
    if shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
        return
    if not shutil.which("apt-get"):
        raise Missing("The hosts need %s: install it." % command)
    install(*packages)


def install(*packages):
    """Install packages of this machine's distribution."""
    print("rig: installing %s" % " ".join(packages), flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run([*as_root(), "apt-get", "-qq", *command], env=environment,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise Missing("apt-get cannot install %s:\n%s" % (
                " ".join(packages), done.stdout[-2000:]))


def as_root():
    """What a command that needs root begins with."""
    if ROOT:
        return []
    if shutil.which("sudo") and subprocess.run(
            ["sudo", "--non-interactive", "true"], stderr=subprocess.DEVNULL).returncode == 0:
        return ["sudo", "--non-interactive", "--preserve-env=DEBIAN_FRONTEND,DOCKER_HOST"]
    raise NotHere("The host images are built as root: be root, or have sudo without a password.")


def start():
    """Start an engine of our own, which outlives us, and wait until it answers."""
    print("rig: starting dockerd, whose log is %s" % LOG, flush=True)
    for file, name in ((PID, "dockerd"),
                       (pathlib.Path("/var/run/docker/containerd/containerd.pid"), "containerd")):
        # A pid that now is another process would keep the new one from starting.
        if file.exists() and not runs(file, name):
            file.unlink()
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            ["dockerd", "--pidfile", str(PID)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            cwd="/", start_new_session=True)
    for _ in range(120):
        version = engine()
        if version:
            return version
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise NotHere("dockerd does not start here. The end of %s:\n%s" % (
        LOG, LOG.read_text(errors="replace")[-2000:]))


def runs(file, name):
    """Whether the process of a pid file is there, and is the one it should be."""
    try:
        pid = int(file.read_text())
        return pathlib.Path("/proc/%d/comm" % pid).read_text().strip() == name
    except (OSError, ValueError):
        return False


# --- The images -----------------------------------------------------------------------------


def images(names):
    """Have images as their recipes say; those of hosts, and an engine's with what it is laid on."""
    # What create.yml and the mock libraries need.
    have("ssh-keygen", "openssh-client")
    have("gcc", "gcc", "libc6-dev")
    laid = VLLM in names and built(VLLM) != recipe(VLLM)
    stale = [name for name in IMAGES if (name in names or laid and name == VLLM_BASE)
             and built(name) != recipe(name)]
    if stale:
        debootstrap(stale)
    if laid:
        lay_vllm()
    if not stale and not laid:
        return "there"
    # What a newer recipe took the name from.
    docker("image", "prune", "--force", "--filter", "label=firstlight.recipe")
    return "built"


def debootstrap(names):
    """Build images from packages, all at once."""
    prefix = as_root()
    have("debootstrap", "debootstrap", "debian-archive-keyring")
    print("rig: building %s, which takes a minute or two" % ", ".join(names), flush=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        builds = {}
        for name in names:
            suite, packages, changes = IMAGES[name]
            builds[name] = pool.submit(subprocess.run, [
                *prefix, str(RECIPE), suite, name, packages, mirror(), labelled(name), *changes],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for name, build in builds.items():
        if build.result().returncode:
            raise Missing("%s was not built. The end of what debootstrap said:\n%s" % (
                name, build.result().stdout[-3000:]))


def lay_vllm():
    """Build the image of vLLM: what its recipe does in a container becomes a layer."""
    print("rig: building %s, which takes some minutes" % VLLM, flush=True)
    _, mounts, files = indexes()
    files.update({"/rig/" + file.name: file.read_bytes() for file in VLLM_RECIPE})
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        # Mounted, not copied: what this machine knows of its indexes must not stay in the image.
        for number, (path, content) in enumerate(files.items()):
            source = pathlib.Path(folder, str(number))
            source.write_bytes(content)
            mounts.append("%s:%s:ro" % (source, path))
        # A label would become the image's; by its name one is found that we were killed over.
        docker("rm", "--force", BUILD)
        try:
            ran = subprocess.run(
                ["docker", "run", "--name", BUILD, *("--volume=" + mount for mount in mounts),
                 VLLM_BASE, "sh", "/rig/" + VLLM_RECIPE[0].name, os.environ.get(TORCH_INDEX, "")],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if ran.returncode:
                raise Missing("%s was not built; %s names an index with CPU builds of torch. "
                              "The end of what was said:\n%s" % (
                                  VLLM, TORCH_INDEX, ran.stdout[-3000:]))
            docker("commit", *("--change=" + change for change in (labelled(VLLM), *VLLM_CHANGES)),
                   BUILD, VLLM, check=True)
        finally:
            docker("rm", "--force", BUILD)


def recipe(name):
    """What an image is made from, as a short hash."""
    if name == VLLM:
        parts = [*(file.read_text() for file in VLLM_RECIPE), VLLM_CHANGES, recipe(VLLM_BASE)]
    else:
        parts = [RECIPE.read_text(), IMAGES[name]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def labelled(name):
    """The instruction that writes the recipe of an image down in it."""
    return "LABEL firstlight.recipe=" + recipe(name)


def built(name):
    """The recipe that an image was made from, or nothing."""
    return docker("image", "inspect", "--format", '{{index .Config.Labels "firstlight.recipe"}}',
                  name).stdout.strip()


def archive(image, file):
    """Have an image in a file, for ``docker load`` on a host that shares no engine with us."""
    wanted = docker("image", "inspect", "--format", "{{.Id}}", image).stdout.strip()
    if not wanted:
        raise Missing("There is no image %s to save: `tests/rig/hosts engines` builds it." % image)
    if holds(file, wanted.partition(":")[2], image):
        return "there"
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever has the old one mounted goes on reading that.
    partial = file.with_name(file.name + ".partial")
    done = docker("save", "--output", str(partial), image)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise Missing("%s was not saved to %s: %s" % (image, file, done.stderr.strip()))
    partial.chmod(0o644)
    partial.replace(file)
    return "saved"


def holds(file, identity, image):
    """Whether a file is the archive of the image with this id, under this name."""
    try:
        with tarfile.open(file) as tar:
            (held,) = json.load(tar.extractfile("manifest.json"))
            names = tar.getnames()
    except (OSError, tarfile.TarError, KeyError, ValueError):
        return False
    # What is in it is named by its hash, which the id is one of: whichever, by the engine's store.
    return held["RepoTags"] == [image] and identity in {
        pathlib.PurePath(name).name.removesuffix(".json") for name in names}


def mirror():
    """Where this machine has its own Debian from; elsewhere debootstrap knows a place."""
    if not shutil.which("apt-get"):
        return ""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages",
         "Origin: Debian", "Label: Debian"], text=True, capture_output=True)
    return (listed.stdout.split() or [""])[0]


# --- The package indexes of this machine ----------------------------------------------------


def indexes():
    """What a container needs for its apt and its pip to find what those of this machine find."""
    sections, mounts, files = {}, [], {}
    for section, key, value in pip_settings():
        sections.setdefault(section, {})[key] = value
        for word in value.split():
            path = pathlib.Path(word.removeprefix("file://"))
            if path.is_absolute() and path.is_dir():
                # The pages of an index may name files that lie beside it.
                path = path.parent if word.startswith("file://") else path
                mounts.append("%s:%s:ro" % (path, path))
            elif path.is_absolute() and path.is_file():
                files[str(path)] = path.read_bytes()
    files["/etc/pip.conf"] = "".join("[%s]\n%s" % (section, "".join(
        "%s = %s\n" % (key, value.replace("\n", "\n  ")) for key, value in held.items()))
        for section, held in sections.items()).encode()
    environment = {name: os.environ[name] for base in PROXIES for name in (base, base.upper())
                   if os.environ.get(name)}
    files["/etc/environment"] = "".join(
        '%s="%s"\n' % item for item in environment.items()).encode()
    files["/etc/apt/apt.conf.d/99rig"] = apt_settings().encode()
    if CERTIFICATES.is_file():
        files[str(CERTIFICATES)] = CERTIFICATES.read_bytes()
    return environment, sorted(set(mounts)), files


def pip_settings():
    """Every setting of pip as section, key and value, the environment's last."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], text=True,
                            capture_output=True, check=True).stdout.splitlines()
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        yield "global" if section == ":env:" else section, key, str(ast.literal_eval(value))


def apt_settings():
    """How this machine's apt acquires: proxies, checks, time limits."""
    if not shutil.which("apt-config"):
        return ""
    listed = subprocess.run(["apt-config", "dump", "Acquire"], text=True, capture_output=True,
                            check=True).stdout
    return "".join(line + "\n" for line in listed.splitlines()
                   if not line.endswith('"";') and "::IndexTargets" not in line
                   and "::Changelogs" not in line)


# --- A host ---------------------------------------------------------------------------------

# Folders of the kernel that a host of a profile has its own of. What else it has under /proc and
# /sys cannot be laid there, and the container stays the Debian that it is.
PLACES = ("/sys/bus/pci/devices", "/sys/firmware", "/proc/driver")
KEPT = "/usr/share/firstlight-rig"
SERVICE = "/etc/systemd/system/firstlight-rig.service"
# At each boot: the kernel's folders and /dev are new then.
UNIT = """\
[Unit]
Description=Lay what the profile of this host has over what the kernel and Docker made
DefaultDependencies=no
# Two at once would take the temporary file of the linker cache from each other.
After=systemd-tmpfiles-setup-dev.service ldconfig.service
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
"""


def options():
    """What docker_container is told of this machine, as JSON."""
    environment, mounts, _ = indexes()
    return json.dumps({"env": environment, "mounts": mounts})


CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_CHROOT", "MKNOD")
AT_ONCE = 4
BOOT_S = 300


def make(folder, archives, wanted):
    """Have containers that run; one that does already stays as it is. Returns those that were made.

    The key to log in with, ``known_hosts`` and ``ssh_config`` are written into the folder.

    :param archives: where the archives of engine images are, by the names of the engines.
    :param wanted: of each host what group_vars/containers.yml of molecule's inventory says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "id").exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id")],
                       check=True)
    environment, mounts, files = indexes()
    files["/root/.ssh/authorized_keys"] = (folder / "id.pub").read_bytes()
    # Two that wear one profile would build it at once.
    worn_by = {host["profile"]: worn(host["profile"], folder) for host in wanted if host["profile"]}

    def one(host):
        name = host["container"]
        state = docker("inspect", "--format", "{{.State.Status}}", name).stdout.strip()
        if not state:
            must("create", "--name", name, "--hostname", host["hostname"], "--label", LABEL,
                 *(["--stop-signal", "SIGRTMIN+3"] if host["boots"] else ["--init"]),
                 # By name only: a proxy may be named with its password.
                 *("--env=" + name for name in environment),
                 # What systemd needs, without --privileged, which not every machine can give.
                 *("--cap-add=" + capability for capability in CAPABILITIES),
                 "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined",
                 "--cgroupns", "host", "--tmpfs", "/run", "--tmpfs", "/run/lock",
                 # A machine has half of its memory; Docker gives too little for vLLM.
                 "--shm-size", "1G", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw",
                 *("--volume=" + mount for mount in mounts),
                 *(["--volume", "/var/lib/docker"] if host["nested_docker"] else []),
                 *("--volume=%s/%s:/mnt/firstlight-archives/%s:ro" % (archives, file, file)
                   for file in (engine + ".tar" for engine in host["archives"])),
                 # The images are made here; there is no registry to ask.
                 "--pull", "never", host["image"],
                 *(["/lib/systemd/systemd"] if host["boots"] else ["sleep", "infinity"]))
        if state in ("", "created"):
            copy(name, {**files, **worn_by.get(host["profile"], {}),
                        **{path: text.encode() for path, text in host["files"].items()}})
        if state != "running":
            must("start", name)
        return name, state != "running", host["boots"] and booted(name)

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(one, wanted))
    ways = [(name, way) for name, _, way in made if way]
    known = "".join("%s %s\n" % (name, key) for name, (_, key) in ways)
    config = "".join("Host %s\n  HostName %s\n  HostKeyAlias %s\n" % (name, address, name)
                     for name, (address, _) in ways)
    config += ("Host *\n  User root\n  IdentityFile %s/id\n  IdentitiesOnly yes\n"
               "  UserKnownHostsFile %s/known_hosts\n  StrictHostKeyChecking yes\n"
               % (folder, folder))
    for file, text in (("known_hosts", known), ("ssh_config", config)):
        (folder / file).write_text(text)
        (folder / file).chmod(0o600)
    return [name for name, new, _ in made if new]


def booted(name):
    """Wait until a host is up; its address, and the key by which it is known."""
    deadline = time.monotonic() + BOOT_S
    while True:
        # Its manager takes a moment to answer. Which units failed is for the tests to say.
        state = docker("exec", name, "systemctl", "is-system-running", "--wait")
        if state.stdout.strip() in ("running", "degraded"):
            break
        if time.monotonic() > deadline:
            raise Missing("%s does not boot within %d s: %s%s" % (
                name, BOOT_S, state.stdout, state.stderr))
        time.sleep(0.2)
    return (must("inspect", "--format", "{{.NetworkSettings.Networks.bridge.IPAddress}}", name),
            must("exec", name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"))


def must(*words):
    """What the client prints; that it fails is told."""
    done = docker(*words)
    if done.returncode:
        raise Missing("docker %s: %s" % (" ".join(words[:3]), done.stderr.strip()))
    return done.stdout.strip()


def fill(container, profile, folder, more):
    """Put this machine's indexes, and the profile that a host wears, into its container."""
    copy(container, {**indexes()[2], **{path: text.encode() for path, text in more.items()},
                     **(worn(profile, pathlib.Path(folder)) if profile else {})})


def copy(container, files):
    """Put files into a container, by path and content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(content), 0o644, int(time.time())
            tar.addfile(member, io.BytesIO(content))
    subprocess.run(["docker", "cp", "-", container + ":/"], input=stream.getvalue(), check=True)


def worn(name, folder):
    """The files that make a container the host of a profile."""
    sys.path.insert(0, str(HERE.parent))
    import mock_nvml  # noqa: PLC0415 - it needs PyYAML, which the other commands do without

    profile = mock_nvml.load(name)
    folder.mkdir(parents=True, exist_ok=True)
    libraries = pathlib.Path(mock_nvml.build(folder))
    files = {"/usr/lib/%s-linux-gnu/%s" % (platform.machine(), library.name): library.read_bytes()
             for library in libraries.glob("*.so.1")}
    mock_nvml.write(profile, folder / (name + ".json"))
    files["/etc/firstlight-mock/profile.json"] = (folder / (name + ".json")).read_bytes()
    commands = ["/usr/bin/cp -r %s/dev/. /dev/" % KEPT, "/usr/sbin/ldconfig"]
    commands += ["/usr/bin/mount --bind %s%s %s" % (KEPT, place, place) for place in PLACES
                 if any(path.startswith(place + "/") for path in profile["files"])]
    for path, text in profile["files"].items():
        at_boot = path.startswith(("/dev/", *(place + "/" for place in PLACES)))
        if at_boot or not path.startswith(("/proc/", "/sys/", "/etc/os-release")):
            files[KEPT + path if at_boot else path] = text.encode()
    files[SERVICE] = (UNIT + "".join("ExecStart=%s\n" % line for line in commands)).encode()
    files["/etc/systemd/system/sysinit.target.d/rig.conf"] = (
        "[Unit]\nWants=%s\n" % pathlib.Path(SERVICE).name).encode()
    return files


# --- The end --------------------------------------------------------------------------------


def remove(names=()):
    """Remove the containers of ours that are named, or all of them, with their volumes."""
    if not engine():
        return []
    # Unless it is said which: those of fleets too, whose label has another value.
    label = LABEL if names else LABEL.partition("=")[0]
    found = docker("ps", "--all", "--format", "{{.Names}}", "--filter", "label=" + label
                   ).stdout.split()
    found = [name for name in found if name in names or not names]
    if found:
        docker("rm", "--force", "--volumes", *found, check=True)
    return found


def stop():
    """Stop the engine, where it is the one that we started."""
    if not runs(PID, "dockerd"):
        return False
    os.kill(int(PID.read_text()), signal.SIGTERM)
    for _ in range(60):
        if not runs(PID, "dockerd"):
            return True
        time.sleep(0.5)
    raise Missing("dockerd does not stop; its log is %s" % LOG)


def main():
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(prog="tests/rig/hosts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="have a Docker engine that answers")
    hosts = commands.add_parser("images", help="have the host images too")
    hosts.add_argument("names", nargs="*", metavar="IMAGE", help="of %s; none: all of hosts"
                       % ", ".join(MADE))
    engines = commands.add_parser("engines", help="have the images of inference engines too")
    engines.add_argument("names", nargs="*", metavar="NAME", help="of %s; none: all of them"
                         % ", ".join(name.partition(":")[2] for name in ENGINES))
    saved = commands.add_parser("archive", help="have an image in a file for docker load")
    saved.add_argument("image")
    saved.add_argument("file", type=pathlib.Path)
    archives = commands.add_parser("archives", help="have engines, and each as FOLDER/NAME.tar")
    archives.add_argument("folder", type=pathlib.Path)
    archives.add_argument("names", nargs="+", metavar="NAME")
    commands.add_parser("options", help="print what containers need of this machine")
    made = commands.add_parser("make", help="have the hosts that a JSON list on stdin describes")
    made.add_argument("folder", type=pathlib.Path)
    made.add_argument("archives", type=pathlib.Path)
    filled = commands.add_parser("fill", help="put files into a container that was not started yet")
    filled.add_argument("container")
    filled.add_argument("--profile", default="", help="a profile of tests/rig/mock_nvml to wear")
    filled.add_argument("--folder", help="where the profile is built")
    filled.add_argument("--files", type=json.loads, default={}, help="more files, a JSON object")
    removed = commands.add_parser("remove", help="remove containers of ours")
    removed.add_argument("names", nargs="+", metavar="CONTAINER")
    commands.add_parser("teardown", help="and stop the engine, if it is ours")
    asked = parser.parse_args()
    try:
        run(asked)
    except Missing as missing:
        print("rig: %s" % missing, file=sys.stderr)
        sys.exit(missing.status)


def run(asked):
    """Run one command; those that change the machine do it one after the other."""
    if asked.command == "options":
        print(options())
        return
    if asked.command == "fill":
        fill(asked.container, asked.profile, asked.folder, asked.files)
        return
    if asked.command == "make":
        made = make(asked.folder, asked.archives, json.load(sys.stdin))
        print("rig: %d hosts are made: %s" % (len(made), ", ".join(made)))
        return
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if asked.command in ("remove", "teardown"):
            gone = remove(asked.names if asked.command == "remove" else ())
            print("rig: %d containers removed" % len(gone))
            if asked.command == "teardown":
                print("rig: %s" % ("dockerd stopped" if stop() else "no engine of ours to stop"))
            return
        print("rig: Docker %s answers" % prepare(), flush=True)
        if asked.command == "images":
            print("rig: the host images are %s" % images(known(asked.names, MADE) or HOSTS))
        if asked.command in ("engines", "archives"):
            names = known(["firstlight-engine:" + name for name in asked.names], ENGINES)
            print("rig: the engine images are %s" % images(names or ENGINES))
        if asked.command == "archives":
            for name in asked.names:
                done = archive("firstlight-engine:" + name, asked.folder / (name + ".tar"))
                print("rig: the archive of %s is %s" % (name, done))
        if asked.command == "archive":
            print("rig: the archive is %s" % archive(asked.image, asked.file))


def known(names, recipes):
    """These names, which there are recipes of."""
    unknown = sorted(set(names) - set(recipes))
    if unknown:
        raise Missing("No recipe makes %s; there are recipes of %s." % (
            ", ".join(unknown), ", ".join(recipes)))
    return names


if __name__ == "__main__":
    main()
