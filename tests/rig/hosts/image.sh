#!/bin/sh
# The recipe of a host image: a minimal Debian with systemd and sshd, as a cloud's installer leaves
# it. Its own text is part of the image's label, so that a changed recipe is built anew.
# Usage, as root: image.sh SUITE TAG LABEL MORE [MIRROR]; MORE are packages with commas.
set -eu
suite=$1 tag=$2 label=$3 more=$4 mirror=${5:-}

packages=systemd,systemd-sysv,dbus,openssh-server,sudo,python3,python3-venv,python3-apt,ca-certificates,iproute2,procps,curl

tree=$(mktemp -d /var/tmp/firstlight-host.XXXXXX)
# In memory where it can be mounted: dpkg syncs each file, which takes longer than all the rest.
mount -t tmpfs -o mode=755 firstlight-host "$tree" 2>/dev/null || true
trap 'umount "$tree" 2>/dev/null || true; rm -rf "$tree"' EXIT
trap 'exit 1' INT TERM

debootstrap --variant=minbase --include="$packages${more:+,$more}" "$suite" "$tree" ${mirror:+"$mirror"} ||
  { tail -n 20 "$tree/debootstrap/debootstrap.log" >&2; exit 1; }

rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb
# A host of its own gets an identity of its own, at its first boot.
: > "$tree/etc/machine-id"
# Root logs in by key alone, which is Debian's default, and the names of other hosts are not looked up.
echo 'UseDNS no' > "$tree/etc/ssh/sshd_config.d/rig.conf"

tar -C "$tree" -c . | docker import --change "LABEL firstlight.recipe=$label" \
  --change 'CMD ["/lib/systemd/systemd"]' - "$tag"
