# uotft for GPUs, or with TORCH_INDEX for the CPU; run by an ordinary user who writes into /work alone.
#   docker build -t uotft .
#   docker run --rm --init --gpus all --read-only --tmpfs /tmp --cap-drop ALL \
#       --security-opt no-new-privileges -v uotft-work:/work uotft uotft doctor
# docs/container.md says how to pin the base by its digest.
ARG BASE=python:3.12.13-slim-bookworm

# --- the environment, with uv and the hashes of the lock files
FROM ${BASE} AS build
WORKDIR /build
COPY requirements-tools.lock ./
RUN python -m venv /uv && /uv/bin/pip install --no-cache-dir --require-hashes -r requirements-tools.lock
COPY requirements.lock pyproject.toml ./
# Empty: torch for GPUs, and a hash for every package. Else an index of packages for the CPU: it gives
# torch and torchvision alone, in the locked versions; the lock file has no hashes of those builds.
ARG TORCH_INDEX=
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/uotft
RUN --mount=type=cache,target=/root/.cache/uv \
    /uv/bin/uv venv --quiet "$VIRTUAL_ENV" \
    && hashes=--require-hashes \
    && if [ -n "$TORCH_INDEX" ]; then \
        sed -n 's/^\(torch\(vision\)*==[0-9.]*\).*/\1/p' requirements.lock > torch.txt \
        && /uv/bin/uv pip install --no-deps --index-url "$TORCH_INDEX" -r torch.txt \
        && hashes=--verify-hashes; \
    fi \
    && /uv/bin/uv pip install "$hashes" --constraints requirements.lock \
        -r pyproject.toml --extra cpu --extra timm --extra lite --extra onnx
# the code last: it changes more often
COPY README.md LICENSE ./
COPY src src
RUN --mount=type=cache,target=/root/.cache/uv \
    /uv/bin/uv build --quiet --wheel --build-constraints requirements.lock --require-hashes

# --- what runs
FROM ${BASE}
# DVC and the doctor call git. Debian keeps no old versions that a build could name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 uotft \
    && install -d -o uotft -g uotft /work
COPY --from=build /opt/uotft /opt/uotft
# a layer of its own, so that a change of the code leaves the layer of torch as it is
RUN --mount=type=bind,from=build,source=/build/dist,target=/dist \
    python -m pip --python /opt/uotft/bin/python --no-cache-dir install --no-deps --no-index /dist/*.whl
USER 1000:1000
WORKDIR /work
# what tools keep for a user: DVC, torch, matplotlib; also those that read HOME alone
ENV PATH=/opt/uotft/bin:$PATH HOME=/work/.home XDG_CACHE_HOME=/work/.home/.cache \
    XDG_CONFIG_HOME=/work/.home/.config DVC_SITE_CACHE_DIR=/work/.home/.cache/uotft/dvc \
    DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
RUN install -d -m 700 .home .home/.cache .home/.cache/uotft .home/.config
EXPOSE 5000
CMD ["uotft", "--help"]
