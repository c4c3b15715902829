# onebyone on the CPU, with the versions of requirements.lock.
#
#   docker build -t onebyone .
#   docker run --rm -v "$PWD/demo:/work/demo" onebyone demo                        # writes demo/index.html
#   docker run --rm -it --network host -v "$PWD/demo:/work/demo" onebyone view demo --no-browser
#
# The folder demo must be writable for user 1000. `view` listens on the loopback interface only, so its container shares
# the network of the machine. PyTorch's default build for Linux contains CUDA (several GB); to use its CPU build, pass the
# index of these builds: --build-arg PIP_EXTRA_INDEX_URL=...
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

RUN useradd --create-home --uid 1000 onebyone && install -d -o onebyone /work
USER onebyone
WORKDIR /work
ENTRYPOINT ["onebyone"]
CMD ["--help"]
