#!/usr/bin/env bash
# submit.sh CPUS MEM_MB GPUS SCRIPT: runs a snakemake job script as a Kubernetes Job; prints the Job's name.
set -euo pipefail
: "${METATUNER_IMAGE:?set it to the name of an image made from envs/Containerfile}"
: "${METATUNER_CLAIM:?set it to the name of the volume claim that holds this checkout}"
cpus=$1 memory=$2 gpus=$3 script=$4

kubectl create --output=name --filename=- <<JOB
apiVersion: batch/v1
kind: Job
metadata:
  generateName: metatuner-
spec:
  backoffLimit: 0 # retries are snakemake's
  ttlSecondsAfterFinished: 604800
  template:
    spec:
      restartPolicy: Never
      containers:
        - name: step
          image: "$METATUNER_IMAGE"
          command: [bash, "$script"]
          workingDir: "$PWD"
          resources:
            requests: {cpu: "$cpus", memory: "${memory}M", nvidia.com/gpu: "$gpus"}
            limits: {memory: "${memory}M", nvidia.com/gpu: "$gpus"}
          volumeMounts:
            - {name: checkout, mountPath: "$PWD"}
      volumes:
        - name: checkout
          persistentVolumeClaim: {claimName: "$METATUNER_CLAIM"}
JOB
