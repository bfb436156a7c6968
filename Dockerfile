# The project with its locked environment, run by an ordinary user who can write into /work alone.
#   docker build -t uotft .
#   docker run --rm -it --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#       -v uotft-work:/work uotft make repro
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 uotft \
    && install -d -o uotft /work
USER uotft
WORKDIR /work

# the environment first: it changes less often than the code
COPY --chown=uotft pyproject.toml requirements.lock requirements-tools.lock Makefile README.md LICENSE ./
COPY --chown=uotft src/uotft/__init__.py src/uotft/__init__.py
RUN make setup

COPY --chown=uotft . .
# what tools keep for a user: DVC, torch, matplotlib; also those that read HOME alone
ENV PATH=/work/.venv/bin:$PATH HOME=/work/.home XDG_CACHE_HOME=/work/.home/.cache \
    XDG_CONFIG_HOME=/work/.home/.config DVC_SITE_CACHE_DIR=/work/.home/.cache/uotft/dvc \
    DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
RUN install -d -m 700 .home .home/.cache .home/.cache/uotft .home/.config
EXPOSE 5000
CMD ["make", "repro"]
