"""What KubeRay's operator reads of a RayService, as far as our manifests say something: unknown fields are errors.

Names and types are those of KubeRay's `ray.io/v1` (`RayServiceSpec`, `RayClusterSpec`) and of Kubernetes' `v1` Pod.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
YES: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9.]+(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def some(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def fields(needed: str = "", **known: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": known, "required": needed.split()}


_KEY = fields("name key", name=NAME, key=TEXT, optional=YES)
_VARIABLE = fields("name", name=TEXT, value=TEXT, valueFrom=fields(secretKeyRef=_KEY, configMapKeyRef=_KEY))
_AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
_CONTAINER = fields(
    "name image",
    name=NAME,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=some(TEXT),
    args=some(TEXT),
    env=some(_VARIABLE),
    envFrom=some({"type": "object"}),
    ports=some(fields("containerPort", containerPort=PORT, name=NAME, protocol=TEXT)),
    resources=fields(requests=_AMOUNTS, limits=_AMOUNTS),
    volumeMounts=some(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=YES, subPath=TEXT)),
    lifecycle={"type": "object"},
    readinessProbe={"type": "object"},
    livenessProbe={"type": "object"},
    securityContext={"type": "object"},
)
_VOLUME = fields(
    "name",
    name=NAME,
    persistentVolumeClaim=fields("claimName", claimName=NAME, readOnly=YES),
    emptyDir=fields(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    secret={"type": "object"},
    configMap={"type": "object"},
)
POD = fields(
    "spec",
    metadata=fields(labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "containers",
        containers={**some(_CONTAINER), "minItems": 1},
        initContainers=some(_CONTAINER),
        volumes=some(_VOLUME),
        terminationGracePeriodSeconds=COUNT,
        nodeSelector=TEXTS,
        tolerations=some({"type": "object"}),
        serviceAccountName=TEXT,
        securityContext={"type": "object"},
    ),
)
_CREDENTIAL = fields(value=TEXT, valueFrom={"type": "object"})
_CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    suspend=YES,
    managedBy=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=TEXTS,
    gcsFaultToleranceOptions=fields(
        "redisAddress",
        redisAddress=TEXT,
        externalStorageNamespace=TEXT,
        redisUsername=_CREDENTIAL,
        redisPassword=_CREDENTIAL,
    ),
    headGroupSpec=fields(
        "template rayStartParams",
        template=POD,
        rayStartParams=TEXTS,
        serviceType=TEXT,
        enableIngress=YES,
        headService={"type": "object"},
    ),
    workerGroupSpecs=some(
        fields(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
            template=POD,
            suspend=YES,
            scaleStrategy={"type": "object"},
        )
    ),
)
RAY_SERVICE: Schema = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=fields("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "serveConfigV2 rayClusterConfig",
        serveConfigV2=TEXT,
        rayClusterConfig=_CLUSTER,
        upgradeStrategy=fields(type={"enum": ["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]}),
        serveService={"type": "object"},
        excludeHeadPodFromServeSvc=YES,
        rayClusterDeletionDelaySeconds=COUNT,
    ),
)
