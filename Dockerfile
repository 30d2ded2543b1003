# The demo in a container:
#   docker build -t worldmodel .
#   docker run --rm -v "$PWD/runs:/home/robot/runs" worldmodel
# Other commands: docker run --rm worldmodel worldmodel --help
#
# pip picks the PyTorch build from the package index it uses. For a CPU build, or for the build of one
# CUDA version, pass that PyTorch index: --build-arg PIP_EXTRA_INDEX_URL=URL. On a GPU: docker run --gpus all.
FROM python:3.11-slim

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

WORKDIR /opt/worldmodel
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[all]"

RUN useradd --create-home robot && mkdir /home/robot/runs && chown robot /home/robot/runs
USER robot
WORKDIR /home/robot
CMD ["worldmodel", "demo"]
