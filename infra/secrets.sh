#!/bin/sh
# Writes fresh secrets for compose.yaml and the Kubernetes manifests: sh infra/secrets.sh > infra/.env
# Without the two lines for S3 if an object store of yours is used: put its keys there instead.
set -eu
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
cat <<END
PREFECT_SERVER_DATABASE_PASSWORD=$(random)
PREFECT_SERVER_API_AUTH_STRING=gmem:$(random)
MLFLOW_DATABASE_PASSWORD=$(random)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(random)
MLFLOW_TRACKING_USERNAME=gmem
MLFLOW_TRACKING_PASSWORD=$(random)
RAY_AUTH_TOKEN=$(random)
AWS_ACCESS_KEY_ID=$(random)
AWS_SECRET_ACCESS_KEY=$(random)
END
