# hiera-video in a container: see docs/container.md.
#
#   docker build -t hiera-video .                                                      a CPU
#   docker build -t hiera-video --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 . a GPU of NVIDIA
#
# Both bases are Ubuntu 24.04: Python 3.12, and an FFmpeg that torchcodec reads.
ARG BASE=ubuntu:24.04
FROM ${BASE}

# Versions are not pinned here: the archive of Ubuntu deletes old ones, so a pin breaks the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates ffmpeg python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# First what is large and changes rarely. TORCH_INDEX: an index with other builds of PyTorch, such as
# those for a CPU alone, a tenth of the size.
ARG TORCH_INDEX=
WORKDIR /opt/hiera-video
COPY requirements.lock ./
RUN python3 -m venv /opt/venv \
    && pip install -c requirements.lock ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

# The lock says which versions; what is installed is what the package asks for, without the tests'.
ARG EXTRAS=features,export,hub,torchcodec
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in ./
COPY configs ./configs
COPY hiera_video ./hiera_video
RUN pip install -c requirements.lock ".[${EXTRAS}]"

# Anyone may write into the folders, since a container may run as the user who owns the videos.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin hiera \
    && install -d -m 1777 /cache /work
ENV TORCH_HOME=/cache/torch \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    MPLCONFIGDIR=/cache/matplotlib \
    NUMBA_CACHE_DIR=/cache/numba
VOLUME /cache
WORKDIR /work
USER 10001

# No weights are in the image: they are downloaded into /cache when they are first named.
ENTRYPOINT ["hiera-video"]
CMD ["--help"]
