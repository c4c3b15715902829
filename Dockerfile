# onebyone on the CPU, with the versions of requirements.lock.
#
#   docker build -t onebyone .
#   mkdir -p demo
#   docker run --rm -v "$PWD/demo:/data/demo" onebyone demo                        # writes demo/index.html
#   docker run --rm -it -p 127.0.0.1:8000:8000 -v "$PWD/demo:/data/demo" \
#       onebyone view demo --host 0.0.0.0 --port 8000 --no-browser                 # prints the page's address
#
# The folder demo must be writable for user 1000. In its container, `view` listens on all interfaces, and docker publishes
# its port on the loopback interface of the machine only; the page opens at the address that is printed, with its token.
# PyTorch's default build for Linux contains CUDA (several GB). Its build for the CPU is on an index of its own:
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
FROM python:3.12-slim

# g++ compiles the kernels of `tune` on the machine
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
ARG PIP_EXTRA_INDEX_URL=""
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY pyproject.toml PACKAGE.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home --uid 1000 onebyone && install -d -o onebyone /data
USER onebyone
WORKDIR /data
ENTRYPOINT ["onebyone"]
CMD ["--help"]
