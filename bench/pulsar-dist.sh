#!/usr/bin/env bash
# Puts an Apache Pulsar standalone together from its Maven artefacts, to measure beside Geminga:
# the server, pulsar-perf, pulsar-admin, and the function instance for Java.
#
#   bench/pulsar-dist.sh DIR              (about 330 jars; seconds once Maven has them)
#   bench/pulsar-dist.sh --functions DIR  what runs functions by themselves alone: the instance and `localrun`
#
# Needs mvn and Java 17. `bench/run.py` starts the server, and writes its ports and its durability into the settings.
set -euo pipefail

version=${PULSAR_VERSION:-4.0.8}
artifacts=(broker client-tools testclient functions-worker functions-local-runner-original functions-api-examples)
if [ "${1:-}" = --functions ]; then
  artifacts=(functions-local-runner-original functions-api-examples)
  shift
fi
mkdir -p "${1:?usage: pulsar-dist.sh [--functions] DIR}"
target=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/nothing" "$target"/{lib,conf,instances/python-instance}

# Old poms of transitive dependencies name repositories that are gone. Only Maven's own default is asked.
cat >"$work/settings.xml" <<XML
<settings>
  <mirrors>
    <mirror><id>only-central</id><mirrorOf>*,!central</mirrorOf><url>file://$work/nothing</url></mirror>
  </mirrors>
</settings>
XML

dependency() { # group artifact version [more]
  printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version>%s</dependency>\n' \
    "org.apache.$1" "$2" "$3" "${4:-}"
}

project() { # name, the rest on stdin
  printf '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>\n'
  printf '<groupId>geminga.bench</groupId><artifactId>%s</artifactId><version>1</version>\n' "$1"
  cat
  printf '</project>\n'
}

{
  echo '<dependencyManagement><dependencies>'
  # these two of 4.0.8 do not resolve from Maven Central; 4.0.7 of them serves
  dependency pulsar pulsar-opentelemetry 4.0.7
  dependency pulsar jetcd-core-shaded 4.0.7
  dependency pulsar pulsar "$version" '<type>pom</type><scope>import</scope>'
  echo '</dependencies></dependencyManagement><dependencies>'
  for artifact in "${artifacts[@]}"; do
    dependency pulsar "pulsar-$artifact" "$version"
  done
  dependency logging.log4j log4j-core 2.23.1
  dependency logging.log4j log4j-slf4j2-impl 2.23.1
  echo '</dependencies>'
} | project server >"$work/server.xml"

{
  echo '<dependencies>'
  dependency pulsar pulsar-functions-runtime-all "$version" \
    '<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>'
  echo '</dependencies>'
} | project instance >"$work/instance.xml"

collect() { # pom folder
  mvn --quiet --batch-mode --settings "$work/settings.xml" --file "$1" \
    org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$2"
}
rm -f "$target"/lib/*.jar
collect "$work/server.xml" "$target/lib"
collect "$work/instance.xml" "$work/instance"
cp "$work"/instance/pulsar-functions-runtime-all-*.jar "$target/instances/java-instance.jar"
# the process runtime wants to see this file, though no Python function is measured on Pulsar
echo 'raise SystemExit("no Python instance in this assembly")' >"$target/instances/python-instance/python_instance_main.py"
echo "$version" >"$target/VERSION"

cat >"$target/conf/log4j2.xml" <<'XML'
<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d{HH:mm:ss.SSS} %-5p %c{1} - %m%n"/></Console></Appenders>
  <Loggers><Root level="info"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
XML
echo "Apache Pulsar $version: $target, $(find "$target/lib" -name '*.jar' | wc -l) jars"
