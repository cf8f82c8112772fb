"""Managed by Terrafirma. Databases, queues and search engines, by the names of their images."""

from __future__ import annotations

import re

from terrafirma_host.image_names import Image
from terrafirma_host.layers import Project

# Images of databases, queues and search engines, by the last part of their names.
DATABASES = (
    # SQL
    "postgres postgresql postgis timescaledb pgvector pgvecto-rs vchord-postgres spilo paradedb"
    " mysql mariadb percona percona-server percona-xtradb-cluster mssql-server azure-sql-edge"
    " cockroach cockroachdb yugabyte yugabytedb tidb tikv cratedb firebird singlestoredb vertica"
    " voltdb greenplum immudb dolt-sql-server rqlite sqld libsql ferretdb edgedb pocketbase"
    # documents, keys, graphs
    " mongo mongodb couchdb couchbase rethinkdb surrealdb arangodb ravendb orientdb neo4j memgraph"
    " dgraph janusgraph falkordb redis redis-stack redismod redisearch redisgraph rejson"
    " valkey keydb dragonflydb kvrocks tarantool aerospike cassandra scylla scylladb hbase"
    " foundationdb dynamodb etcd openbao zookeeper cp-zookeeper hazelcast"
    # queues
    " rabbitmq nats nats-streaming kafka cp-kafka cp-server redpanda pulsar activemq rocketmq nsq"
    " bookkeeper emqx mosquitto eclipse-mosquitto vernemq hivemq hivemq4 beanstalkd elasticmq"
    " eventstore kurrentdb"
    # search
    " elasticsearch opensearch solr meilisearch typesense qdrant weaviate milvus chromadb"
    " manticore manticoresearch quickwit zincsearch"
    # time series, objects
    " clickhouse influxdb victoria-metrics victoria-logs victoriametrics questdb tdengine"
    " prometheus minio rustfs seaweedfs azurite openldap iotdb greptimedb vmstorage openobserve"
).split()
# Suffixes of image names that are still such a database.
VARIANTS = (
    "all alpha alpine artemis atlas beta broker bundle bullseye bookworm trixie classic cluster"
    " cloud community core db debian edge enterprise free galera ha kraft lite local management"
    " mongodb native ndb nightly oss pgvector postgis repmgr replicaset server sharded single slim"
    " ssl stack standalone timescaledb ubuntu ubi"
).split()
# Common words that name a database only with their publisher; "library" is Docker's own.
PUBLISHED = frozenset(
    "library/crate crate/crate library/consul hashicorp/consul library/vault hashicorp/vault"
    " grafana/loki grafana/tempo grafana/mimir dxflrs/garage valeriansaliou/sonic apache/ignite"
    " apacheignite/ignite apache/druid dragonflydb/dragonfly microsoft/garnet chromadb/chroma"
    " chroma-core/chroma vespaengine/vespa marqoai/marqo graphiteapp/graphite-statsd mssql/server"
    " database/express database/enterprise database/free ibmcom/db2 db2_community/db2"
    " gvenzl/oracle-free gvenzl/oracle-xe citusdata/citus basho/riak scality/cloudserver"
    " apache/age pgautoupgrade/pgautoupgrade cloudamqp/lavinmq infinispan/server rhel/server"
    " mysql/community-server mysql/enterprise-server".split()
)
DATABASE = re.compile(
    rf"({'|'.join(DATABASES)})\d*([-_.]({'|'.join(VARIANTS)}|v?\d+|(c|el|rhel|ubi|centos|pg)\d+s?))*"
)
# The data directories of databases, which a second process would destroy. A mount elsewhere holds a
# socket, for example, or copies.
DATA = (
    "/data /var/lib /var/opt/mssql /var/solr /bitnami /prometheus /loki /etcd-data /cockroach"
    " /usr/share/elasticsearch/data /usr/share/opensearch/data /qdrant/storage /meili_data"
    " /consul/data /vault/file /vault/data /opt/couchdb/data /opt/couchbase/var /opt/kafka /kafka"
    " /opt/oracle/oradata /mosquitto/data /pulsar/data /opt/emqx/data /home/postgres/pgdata"
    " /opt/infinispan/server/data /rqlite/file /pb_data /victoria-metrics-data".split()
)


def is_database(image: str) -> bool:
    """Whether an image's name is that of a database, a queue or a search engine."""
    named = Image.of(image.lower())
    known = f"{named.publisher}/{named.last}" in PUBLISHED
    return known or bool(DATABASE.fullmatch(named.last))


def database(project: Project, name: str) -> str:
    """The image of a service, if it is a database's; else "", as for an image that is built."""
    service = project["services"][name]
    image: str = service.get("image") or ""
    return image if "build" not in service and is_database(image) else ""
