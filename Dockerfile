# devil-pipe in a container:
#   docker build --target cpu  -t devil-pipe:cpu  .    (--build-arg TORCH_INDEX=… for PyTorch's smaller CPU build, see below)
#   docker build --target cuda -t devil-pipe:cuda .
#   docker run --rm -v "$PWD:/work" -v devil-pipe-cache:/home/devil/.cache devil-pipe:cpu explain cat.jpg
# Every package is checked against the hashes of requirements.lock. Java comes as a wheel, CUDA's libraries too.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS tools
WORKDIR /source
COPY bootstrap.lock requirements.lock ./
RUN python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r bootstrap.lock

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY pipeline pipeline
COPY stages stages
COPY store store
RUN uv build --wheel --quiet --build-constraint requirements.lock --out-dir /wheel .

# The environments are made apart from what is shipped, so that neither uv nor its cache is in the image.
FROM tools AS cuda-environment
COPY --from=wheel /wheel /wheel
RUN uv venv --quiet /opt/devil-pipe && \
    VIRTUAL_ENV=/opt/devil-pipe uv pip install --quiet --no-cache \
      --constraint requirements.lock --build-constraint requirements.lock \
      "devil-pipe[explore,s3] @ file://$(echo /wheel/*.whl)"

# PyTorch's CPU build is on an index of its own, whose address the builder gives: TORCH_INDEX. It has other hashes than
# the lock's, so those two packages alone are taken by version. Without it this is the CUDA build, which runs on a CPU
# as well and is some 4 GB larger.
FROM tools AS cpu-environment
ARG TORCH_INDEX=""
COPY --from=wheel /wheel /wheel
RUN uv venv --quiet /opt/devil-pipe && \
    if [ -n "$TORCH_INDEX" ]; then \
      grep -oE '^torch(vision)?==[^ ;]+' requirements.lock > torch.txt && \
      VIRTUAL_ENV=/opt/devil-pipe uv pip install --quiet --no-cache --no-deps --index "$TORCH_INDEX" -r torch.txt && \
      sed -i -E '/^torch(vision)?==/,/[^\\]$/d' requirements.lock; \
    fi && \
    VIRTUAL_ENV=/opt/devil-pipe uv pip install --quiet --no-cache \
      --constraint requirements.lock --build-constraint requirements.lock \
      "devil-pipe[explore,s3] @ file://$(echo /wheel/*.whl)"

FROM python:${PYTHON} AS base
# git for DVC. Its version is Debian's of the day: a pinned one would be gone from the mirrors at the next fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* && \
    useradd --create-home --uid 1000 devil && mkdir /work && chown devil /work
ENV PATH=/opt/devil-pipe/bin:$PATH DVC_NO_ANALYTICS=1 PYTHONUNBUFFERED=1
WORKDIR /work

FROM base AS cuda
COPY --from=cuda-environment /opt/devil-pipe /opt/devil-pipe
# The driver comes from the machine by NVIDIA's container toolkit (docker run --gpus all).
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
ENTRYPOINT ["devil-pipe"]
CMD ["--help"]

# Last, so that a build without --target makes it.
FROM base AS cpu
COPY --from=cpu-environment /opt/devil-pipe /opt/devil-pipe
USER 1000
ENTRYPOINT ["devil-pipe"]
CMD ["--help"]
