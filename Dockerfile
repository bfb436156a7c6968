# The project with its locked environment, run by an ordinary user.
#   docker build -t uotft . && docker run --rm -it -v uotft-work:/work uotft make repro
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
ENV PATH=/work/.venv/bin:$PATH DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 5000
CMD ["make", "repro"]
