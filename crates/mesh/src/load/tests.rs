use super::*;

fn loaded(text: &str) -> Loaded {
    load([(Path::new("a.yaml"), text)]).expect(text)
}

#[test]
fn plain_configurations_are_told_apart() {
    for (text, kind) in [
        ("name: a\nsh: a.sh\ninputs: [x]", "function"),
        ("name: a\nsourceType: file\ntopicName: x", "source"),
        ("name: a\nsinkType: file\ninputs: [x]", "sink"),
        ("name: a\ntopicName: x\narchive: a.nar", "source"),
    ] {
        assert_eq!(loaded(text).components[0].kind(), kind, "{text}");
    }
}

/// Everything that the operator's own samples use.
#[test]
fn what_only_kubernetes_uses_is_listed_not_lost() {
    let text = "\
apiVersion: compute.functionmesh.io/v1alpha1
kind: Function
metadata: {name: java-function, namespace: default}
spec:
  image: streamnative/pulsar-functions-java-sample:2.10.0.0
  className: org.apache.pulsar.functions.api.examples.ExclamationFunction
  forwardSourceMessageProperty: true
  maxPendingAsyncRequests: 1000
  replicas: 1
  maxReplicas: 5
  logTopic: persistent://public/default/logging-function-logs
  input: {topics: [persistent://public/default/java-function-input-topic], typeClassName: java.lang.String}
  output: {topic: persistent://public/default/java-function-output-topic, typeClassName: java.lang.String}
  resources: {requests: {cpu: '0.1', memory: 1G}, limits: {cpu: '0.2', memory: 1.1G}}
  autoAck: true
  pulsar: {pulsarConfig: test-pulsar}
  pod: {env: [{name: a, value: b}], builtinAutoscaler: [AverageUtilizationCPUPercent80]}
  java: {jar: /pulsar/examples/api-examples.jar}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: test-pulsar}
data: {webServiceURL: x, brokerServiceURL: y}
";
    let loaded = loaded(text);
    assert_eq!(
        loaded.kubernetes_only,
        [
            "java-function: maxReplicas",
            "java-function: image",
            "java-function: pod",
            "java-function: pulsar",
            "ConfigMap test-pulsar",
        ]
    );
    let Config::Function(config) = &loaded.components[0].config else {
        panic!("not a function")
    };
    assert_eq!(
        serde_json::to_string(config).expect("writes"),
        concat!(
            r#"{"name":"java-function","className":"org.apache.pulsar.functions.api.examples.ExclamationFunction","#,
            r#""inputs":["persistent://public/default/java-function-input-topic"],"inputTypeClassName":"java.lang.String","#,
            r#""outputTypeClassName":"java.lang.String","output":"persistent://public/default/java-function-output-topic","#,
            r#""logTopic":"persistent://public/default/logging-function-logs","forwardSourceMessageProperty":true,"#,
            r#""autoAck":true,"parallelism":1,"resources":{"cpu":0.2,"ram":1100000000},"#,
            r#""jar":"/pulsar/examples/api-examples.jar","cleanupSubscription":false,"maxPendingAsyncRequests":1000}"#
        )
    );
}

/// A pod's resources say nothing of a connector that is in the worker.
#[test]
fn resources_of_connectors_are_for_kubernetes() {
    let text = "\
apiVersion: compute.functionmesh.io/v1alpha1
kind: Source
metadata: {name: reader}
spec:
  sourceType: file
  sourceConfig: {path: in}
  output: {topic: events}
  resources: {limits: {cpu: '0.2', memory: 1.1G}}
---
apiVersion: compute.functionmesh.io/v1alpha1
kind: Sink
metadata: {name: writer}
spec:
  sinkType: file
  sinkConfig: {path: out}
  input: {topics: [events]}
  resources: {requests: {memory: 1Gi}}
";
    let loaded = loaded(text);
    assert_eq!(
        loaded.kubernetes_only,
        ["reader: resources", "writer: resources"]
    );
    for component in &loaded.components {
        let resources = match &component.config {
            Config::Source(config) => &config.resources,
            Config::Sink(config) => &config.resources,
            Config::Function(_) => panic!("a function"),
        };
        assert_eq!(*resources, None);
    }
}

#[test]
fn an_empty_file_is_an_error() {
    let said = load([(Path::new("a.yaml"), "# nothing\n")]).expect_err("empty");
    assert_eq!(
        said[0].to_string(),
        "error[G0306]: `a.yaml` is empty\n  = help: see examples/ for what can stand in it"
    );
}
