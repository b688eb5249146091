#!/bin/sh
# The recipe of an image from debootstrap: a minimal Debian with some packages, as a cloud's installer
# leaves it. Its own text is part of the image's label, so that a changed recipe is built anew.
# Usage, as root: image.sh SUITE TAG PACKAGES MIRROR CHANGE...; PACKAGES with commas between them,
# MIRROR may be empty, each CHANGE is an instruction of a Dockerfile.
set -eu
suite=$1 tag=$2 packages=$3 mirror=$4
shift 4

tree=$(mktemp -d /var/tmp/firstlight-rig.XXXXXX)
# In memory where it can be mounted: dpkg syncs each file, which takes longer than all the rest.
mount -t tmpfs -o mode=755 firstlight-rig "$tree" 2>/dev/null || true
trap 'umount "$tree" 2>/dev/null || true; rm -rf "$tree"' EXIT
trap 'exit 1' INT TERM

debootstrap --variant=minbase --include="$packages" "$suite" "$tree" ${mirror:+"$mirror"} ||
  { tail -n 20 "$tree/debootstrap/debootstrap.log" >&2; exit 1; }

rm -rf "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb
# A host of its own gets an identity of its own, at its first boot.
: > "$tree/etc/machine-id"
# Root logs in by key alone, which is Debian's default, and the names of other hosts are not looked up.
if [ -d "$tree/etc/ssh/sshd_config.d" ]; then
  echo 'UseDNS no' > "$tree/etc/ssh/sshd_config.d/rig.conf"
fi

# `docker import` takes its options, then the archive and the tag.
for change in "$@"; do
  set -- "$@" --change "$change"
  shift
done
tar -C "$tree" -c . | docker import "$@" - "$tag"
