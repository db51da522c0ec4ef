# ddgan_fast on NVIDIA GPUs. Needs the NVIDIA container toolkit on the host.
#   docker build -t ddgan_fast .
#   docker run --gpus all --ipc host -v /data:/data -v /runs:/work/runs ddgan_fast \
#       train cifar10 --data /data/cifar-10-batches-py
# The devel image has nvcc, so that the ops in CUDA C++ can be compiled; triton and torch do without.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ ninja-build \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# Its wheels bring the CUDA libraries that they need; the host's driver must support their version.
ARG TORCH=2.13.0
RUN python3 -m venv /opt/venv && pip install --no-cache-dir "torch==$TORCH"

WORKDIR /src
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[demo,lmdb,dali]"

# The image's own user "ubuntu".
RUN mkdir -p /work/runs && chown -R 1000:1000 /work
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["ddgan-fast"]
CMD ["doctor"]
