"""Which images are databases, by their names."""

import pytest
from terrafirma_host.databases import is_database

DIGEST = f"sha256:{'0' * 64}"
DATABASES = """
postgres postgres:17 postgres:17.2-alpine3.20 library/postgres docker.io/library/postgres:17
localhost:5000/postgres registry.example.com:5000/mirror/postgres:17 postgis/postgis:17-3.5
timescale/timescaledb:latest-pg17 timescale/timescaledb-ha pgvector/pgvector:pg17 ankane/pgvector
supabase/postgres:15.8 bitnami/postgresql:17 bitnamilegacy/postgresql-repmgr quay.io/sclorg/postgresql-15-c9s
ghcr.io/immich-app/postgres:14 registry.redhat.io/rhel9/postgresql-16 postgres15 tensorchord/pgvecto-rs:pg16
mysql:8 mysql/mysql-server:8.0 mariadb:11 bitnami/mariadb-galera lscr.io/linuxserver/mariadb percona/percona-server-mongodb
percona:8 mongo:7 mongodb/mongodb-community-server:7.0-ubi9 redis redis:7-alpine redis/redis-stack-server:latest
bitnami/redis-cluster redis7 valkey/valkey:8 eqalpha/keydb docker.dragonflydb.io/dragonflydb/dragonfly
rabbitmq:4-management bitnami/rabbitmq nats:2.10 nats-streaming apache/kafka:3.9 apache/kafka-native confluentinc/cp-kafka:7.7
confluentinc/cp-zookeeper confluentinc/cp-server wurstmeister/kafka bitnami/kafka docker.redpanda.com/redpandadata/redpanda:v24
zookeeper:3.9 apachepulsar/pulsar-all apache/activemq-classic apache/activemq-artemis eclipse-mosquitto:2 nsqio/nsq
docker.elastic.co/elasticsearch/elasticsearch:8.16.1 elasticsearch:8 opensearchproject/opensearch:2 solr:9
getmeili/meilisearch:v1.11 typesense/typesense:27 qdrant/qdrant semitechnologies/weaviate cr.weaviate.io/semitechnologies/weaviate:1.27
milvusdb/milvus:v2.4 chromadb/chroma ghcr.io/chroma-core/chroma:0.5 clickhouse/clickhouse-server:24 altinity/clickhouse-server
influxdb:2 victoriametrics/victoria-metrics:v1 prom/prometheus:v3 minio/minio quay.io/minio/minio:RELEASE.2024-11-07
quay.io/coreos/etcd:v3.5 bitnami/etcd hashicorp/consul consul:1.15 hashicorp/vault neo4j:5 couchdb:3 cassandra:5 scylladb/scylla
cockroachdb/cockroach arangodb:3.12 surrealdb/surrealdb rethinkdb mcr.microsoft.com/mssql/server:2022-latest
mcr.microsoft.com/azure-sql-edge container-registry.oracle.com/database/express:21 questdb/questdb dgraph/dgraph
acme/postgres crate:5 registry.example.com/hashicorp/vault:1.17 valeriansaliou/sonic mysql-80-c9s sclorg/mongodb-36-centos7
postgres:17-trixie bitnami/mongodb-sharded mongodb/mongodb-atlas-local apache/druid gvenzl/oracle-xe:21-slim ghcr.io/tursodatabase/libsql-server:v0.24 redislabs/redisearch
elasticsearch-oss:7 redis-8.2-alpine gvenzl/oracle-free:23-slim citusdata/citus:13 apache/age:release_PG16_1.6.0
pgautoupgrade/pgautoupgrade:17-alpine cloudamqp/lavinmq:2 quay.io/infinispan/server:15 mcr.microsoft.com/mssql/rhel/server:2022-latest
container-registry.oracle.com/mysql/community-server:8.4 container-registry.oracle.com/mysql/enterprise-server:8.4
memgraph/memgraph grafana/loki:3 amazon/dynamodb-local dxflrs/garage:v1 chrislusf/seaweedfs tarantool/tarantool
""".split()  # noqa: E501
OTHERS = """
api web registry.example.com/team/api:1.2 nginx memcached:1.6 bitnami/memcached caddy traefik mailhog/mailhog
prometheuscommunity/postgres-exporter oliver006/redis_exporter prom/mysqld-exporter mongo-express:1 phpmyadmin
rediscommander/redis-commander:latest redis/redisinsight provectuslabs/kafka-ui confluentinc/cp-kafka-connect
confluentinc/cp-kafka-rest opensearchproject/opensearch-dashboards prodrigestivill/postgres-backup-local
schickling/postgres-backup-s3 mysql/mysql-router minio/mc minio/console natsio/nats-box dpage/pgadmin4 edoburu/pgbouncer
postgrest/postgrest supabase/postgres-meta supabase/realtime hasura/graphql-engine redpandadata/console
hashicorp/consul-template bitnami/pgbouncer grafana/grafana acme/redistribution acme/mongoose-api acme/kafkaesque
ghcr.io/acme/kafka-consumer acme/redis-worker acme/mongo-sync acme/mysql-cdc elasticsearch-indexer natsio/nats-surveyor
prom/pushgateway prometheus-pushgateway onerahmet/openai-whisper-asr-webservice linuxserver/faster-whisper
mobz/elasticsearch-head percona/percona-toolkit opensearchproject/logstash-oss-with-opensearch-output-plugin acme/garage
acme/tempo acme/sonic acme/crate ghcr.io/acme/vault acme/consul-watcher acme/postgres-17-reports acme/my-redis
registry.example.com:5000/acme/dragonfly postgres/reader acme/etcd-lock grafana/loki-canary acme/loki:3 acme/minio-sync
acme/server acme/age acme/citus-dashboard
""".split()  # noqa: E501


@pytest.mark.parametrize("image", DATABASES)
def test_databases_are_known_by_their_names(image: str) -> None:
    assert is_database(image)
    assert is_database(f"{image.partition(':')[0] if ':5' not in image else image}@{DIGEST}")


@pytest.mark.parametrize("image", OTHERS)
def test_images_around_a_database_are_no_database(image: str) -> None:
    assert not is_database(image)
