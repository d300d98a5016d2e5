# The environment of requirements.lock with Snakemake and the workflow. Built and used on a machine with a network:
#   docker build --tag mil .
#   docker run --rm --volume "$PWD:/work" mil snakemake --snakefile /opt/mil/Snakefile --configfile cohort.yaml --cores all
# For a GPU leave out TORCH_INDEX's value and add `--gpus all` to `docker run`.
FROM docker.io/library/python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.lock pyproject.toml README.md LICENSE /opt/mil/
COPY mil /opt/mil/mil
# mil is installed from its folder, so that the workflow and the package are of one version
RUN python -m venv /opt/env \
 && /opt/env/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} -r /opt/mil/requirements.lock -e /opt/mil
COPY Snakefile /opt/mil/Snakefile
COPY workflow /opt/mil/workflow
COPY configs /opt/mil/configs
# No home folder is needed; caches go to the job's temporary folder
ENV PATH=/opt/env/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib XDG_CACHE_HOME=/tmp/cache HF_HUB_OFFLINE=1
WORKDIR /work
CMD ["mil", "--help"]
