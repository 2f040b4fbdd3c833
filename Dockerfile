# fedhet on CPUs: one image for server and clients (compose.yaml shows a federation of one and three).
FROM python:3.11-slim

# A C compiler for loops made on the machine they run on: without one small models train several times slower, and what
# they learn differs in its last bits from machines that have one. fedhet needs none to work.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 fedhet \
    && install -d -o fedhet -g fedhet -m 0700 /state /invitations /runs
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY clients clients
COPY conf conf
COPY fedhet fedhet
COPY strategies strategies
# torch from the index of CPU builds first: the default one carries gigabytes for GPUs
RUN torch="$(grep '^torch==' constraints.txt)" \
    && python -m pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$torch" \
    && python -m pip install --no-cache-dir -c constraints.txt .

USER fedhet
WORKDIR /runs
ENV FEDHET_HOME=/state/federation FEDHET_CLIENT=/state/client
CMD ["fedhet", "--help"]
