"""The Ray Serve application: one replica per device, with the whole engine inside the replica.

`serve run serve.app:build checkpoint=DIR profile=FILE policy=slackfit` starts it; `user_config`
(`policy`, `slo_ms`, `subnets`, `max_batch_size`, of decoders `ttft_ms`, `tpot_ms`) reconfigures it
without a restart. Ray Serve places, routes, checks and replaces replicas; queueing, ordering and
refusing are the engine's alone, so `max_ongoing_requests` stays above what the engine queues
and Ray's router never holds a request.

A request through Ray's proxy costs milliseconds, of latency and of CPU. So with `door_port` each
replica also listens itself, with the same app: the same answers, without the hop; and with
`grpc_port` it speaks gRPC there. (Ray's own direct ingress does likewise, but binds without
SO_REUSEADDR: after a crash under load, its fixed port stays unusable for a minute and the
replacement fails to start. A call's gRPC deadline does not reach it through Ray's proxy.)
"""

from serve.hosts.ray_replica import SupernetReplica, build

__all__ = ["SupernetReplica", "build"]
