# docker build -f env.Dockerfile -t amaml .
# docker run --gpus all -v "$PWD":/amaml -w /amaml amaml bash experiment.sh Alpine2D 100 100 200 cuda:0
FROM python:3.11-slim
# torch.compile builds its kernels with a C++ compiler; git tells a run its commit
RUN apt-get update && apt-get install -y --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/requirements.txt
RUN cd /tmp && python -m pip install --no-cache-dir -r requirements.txt
