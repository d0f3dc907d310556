//! The error codes of the command line, with what `geminga explain` says of each.
//!
//! The first two digits are the place: 00 the command line, 01 the server and its data, 02 topics and
//! the admin API, 03 files and meshes, 04 functions, 05 clients.

/// Code, title, text.
pub(crate) type Code = (&'static str, &'static str, &'static str);

/// All codes, in order.
pub(crate) fn all() -> impl Iterator<Item = Code> {
    CODES.iter().copied()
}

const CODES: &[Code] = &[
    (
        "G0001",
        "an operation of the system failed",
        "Reading, writing or starting something failed, and the system's own words are in the message.",
    ),
    (
        "G0003",
        "no such error code",
        "`geminga explain` without a code lists all of them.",
    ),
    (
        "G0101",
        "a port is in use",
        "Another process listens on the port. Take another one with `--port` and `--http-port`; 0 means a \
         free one, and with `-o json` the first line on stdout tells which.",
    ),
    (
        "G0102",
        "the data directory is in use",
        "A data directory belongs to one server at a time, by a lock that ends with the server. Stop the \
         other server, or name another directory with `--data`.",
    ),
    (
        "G0103",
        "the data directory can't be used",
        "It can't be made, read or written. The message has the system's reason. Check its owner and \
         permissions, and that the disk is not mounted read-only.",
    ),
    (
        "G0104",
        "the data directory was written by a newer Geminga",
        "This version does not know its format and changes nothing in it. Run the newer version, or name \
         another directory with `--data`.",
    ),
    (
        "G0105",
        "the data is damaged",
        "A checksum does not fit in the middle of the data, at the file and offset in the message. Geminga \
         never skips damage in silence. `geminga storage check --data DIR` lists all of it, and \
         `geminga storage repair --data DIR --into COPY` copies every message that can be read into a new \
         directory, with topics, subscriptions and functions, and says what was lost. The damaged directory \
         stays as it is.",
    ),
    (
        "G0106",
        "the disk is full",
        "Below a threshold of free space producers get a retriable error while consumers and \
         acknowledgements go on. Free some space: the server recovers by itself.",
    ),
    (
        "G0107",
        "a setting is not known or not legal",
        "Settings are honoured or refused, never ignored. The message names the setting.",
    ),
    (
        "G0108",
        "a broker.conf can't be used",
        "The file for `--config` has `name=value` lines with the names of Pulsar's broker.conf. A name that \
         Geminga does not honour is refused, so that no setting is ignored.",
    ),
    (
        "G0109",
        "a key or token can't be read",
        "Keys are `file:PATH`, `env:NAME`, `data:;base64,..`, a path or base64; tokens are themselves, \
         `file:PATH` or `env:NAME`.",
    ),
    (
        "G0110",
        "a key or token is not good",
        "The token was signed with another key, has expired, or names no role; or the key does not fit the \
         algorithm. Make new ones with `geminga tokens`.",
    ),
    (
        "G0201",
        "the admin API can't be reached",
        "Nothing answers at the admin URL. Start a server with `geminga standalone`, or name another one with \
         `--admin-url` (or GEMINGA_ADMIN_URL).",
    ),
    (
        "G0202",
        "there is no such thing",
        "The server does not know the tenant, namespace, topic, subscription, function, source or sink that was \
         named. Names without a tenant and namespace mean `public/default`.",
    ),
    (
        "G0203",
        "it conflicts with what is there",
        "It exists already, is not empty, is not partitioned, or was changed by somebody else at the same time. \
         The message says which.",
    ),
    (
        "G0204",
        "the server refused",
        "What was asked for is not possible now: connected producers or consumers without `--force`, say. The \
         message is the server's own.",
    ),
    (
        "G0205",
        "not authorised",
        "The server knows who asks, or does not, and does not allow it.",
    ),
    (
        "G0206",
        "the admin API did not answer in time",
        "The server took the request and did not answer within a minute, or what it waited for did not happen.",
    ),
    (
        "G0208",
        "what was typed does not fit",
        "An option is missing, or two exclude each other, or a name is not legal. `--help` shows an example.",
    ),
    (
        "G0209",
        "not implemented",
        "Pulsar has this and Geminga has not yet. Nothing was changed.",
    ),
    (
        "G0210",
        "the request is not valid",
        "The server read the request and found a mistake in it, which the message names. Nothing was changed.",
    ),
    (
        "G0211",
        "the admin URL is not usable",
        "An admin URL is `http://host:port`, or `https://host:port` with TLS; the broker's own port 6650 speaks \
         another protocol.",
    ),
    (
        "G0212",
        "the answer was not understood",
        "What answers at the admin URL is not the admin API of Geminga or Pulsar, or of a version that differs.",
    ),
    (
        "G0213",
        "TLS can't be spoken",
        "A file that `--tls-trust-certs-file-path`, `--tls-certificate-file-path` or `--tls-key-file-path` (or \
         GEMINGA_TLS_TRUST_CERTS_FILE_PATH and so on) names can't be used, nobody is trusted, or a request that \
         was sent over TLS is to go on without it. The files are PEM; certificate and key go together.",
    ),
    (
        "G0301",
        "a field is not known or its value not legal",
        "Settings are honoured or refused, never ignored. The message names the field and its place in the file, \
         and the nearest known name.",
    ),
    (
        "G0302",
        "a value is not legal",
        "The field is known, its value is of the wrong kind or not one of those it may have. The message says what \
         would be right. Resources of Function Mesh spell guarantees and positions in lower case \
         (`atleast_once`, `earliest`), configurations of Pulsar do not (`ATLEAST_ONCE`, `Earliest`).",
    ),
    (
        "G0303",
        "a field is missing",
        "Nothing can stand in for it.",
    ),
    (
        "G0304",
        "the file is not valid YAML or JSON",
        "The place is where reading stopped; the mistake is there or just before it. A file whose name ends in \
         `.json` is read as JSON, every other as YAML 1.2. A key may be given once; tags have no meaning.",
    ),
    (
        "G0305",
        "the file is beyond the bounds",
        "No configuration needs more than 4 MiB, 200,000 values or 64 levels. Each use of a YAML alias counts as \
         much as what it stands for, so that a small file cannot become a large one.",
    ),
    (
        "G0306",
        "the file does not say what it is",
        "A resource of Function Mesh has `apiVersion: compute.functionmesh.io/v1alpha1` and a kind: Function, \
         Source, Sink or FunctionMesh. A file without a kind is a FunctionConfig, SourceConfig or SinkConfig.",
    ),
    (
        "G0307",
        "a rule is broken",
        "Each field is legal, but not in this way or not together with another one. The rules are Pulsar's, and one \
         more: topics are compared by their full names, so that a function cannot read its own output by another \
         spelling of it.",
    ),
    (
        "G0308",
        "a setting can't be honoured",
        "The setting would change what the component does, and this runtime cannot do it. It is refused rather than \
         ignored, before anything starts: a server would refuse it when the component is created. The message says why \
         and what to do instead. Settings that only describe pods and images are accepted and listed by \
         `geminga mesh plan`.",
    ),
    (
        "G0309",
        "no such built-in connector",
        "`sourceType` and `sinkType` name connectors that are part of Geminga.",
    ),
    (
        "G0310",
        "the file can't be read",
        "The message has the system's reason.",
    ),
    (
        "G0311",
        "events go round in a circle",
        "Each function of the circle would feed the next one for ever. The cause names the way: function, topic, \
         function. Send the output of one of them to another topic, or read from another one.",
    ),
    (
        "G0312",
        "a name is taken twice",
        "Sources, functions and sinks of one namespace share their names, as they do in Pulsar.",
    ),
    (
        "G0313",
        "the function's code is missing",
        "The path is relative to the file that names it. A script needs no execute permission, an executable does.",
    ),
    (
        "G0314",
        "a topic may be misspelt",
        "Nothing in the mesh writes the topic, and something writes one with nearly the same name. A topic that is \
         written from outside is drawn as external; if that is meant, all is well.",
    ),
    (
        "G0400",
        "the functions worker did not start",
        "The worker reads its catalogue from the topic `persistent://public/functions/metadata` and keeps code \
         in the data directory. The cause names what failed.",
    ),
    (
        "G0401",
        "the code can't be sent",
        "The file that a function, source or sink names as its code can't be read here. A path is relative to the \
         directory that the command runs in.",
    ),
    (
        "G0410",
        "events were given up",
        "They failed more often than `maxMessageRetries` allows, or their data can never be processed. They are in \
         the dead letter topic, each with the reason, the attempts and the last of its standard error as properties.",
    ),
    (
        "G0411",
        "stopped before the end",
        "A signal ended the run. What was acknowledged is safe, the rest of the input was not read.",
    ),
    (
        "G0412",
        "a component cannot run",
        "Its code does not start, or breaks again and again. The cause holds what it said last.",
    ),
    (
        "G0420",
        "cases failed",
        "`geminga test` ran the cases beside a function, and not all came out as they say. Lines with `-` were wanted, \
         lines with `+` came. `--update` writes what came into the cases; only what a case names is compared.",
    ),
    (
        "G0421",
        "a file of cases can't be read",
        "It is called NAME.test.yaml and has `cases:`, a list. A case has `name`; `input` (one message) or `messages`; \
         and may have `config`, `secrets`, `state` and `expect` with `output` or `outputs`, `state`, `error` or `errors`, \
         `logs` and `metrics`. Text that looks like a number stands in quotes. `geminga init bash DIR` writes an example.",
    ),
    (
        "G0422",
        "no cases were found",
        "`geminga test` looks for files called NAME.test.yaml, in the directories that are named or here.",
    ),
    (
        "G0423",
        "a directory is too large for a function",
        "A function's directory is read whole, to test it or to see what was saved. Put the function into one of its own.",
    ),
    (
        "G0424",
        "files are there already",
        "`geminga init` overwrites nothing. Name another directory, or move the files away.",
    ),
    (
        "G0425",
        "requirements can't be locked",
        "`geminga lock` asks pip what requirements.txt comes to, and writes each package with its version and hash into \
         requirements.lock, which is what the worker installs. pip's own words are in the cause.",
    ),
    (
        "G0501",
        "the broker can't be reached",
        "Nothing answers at the service URL. Start a server with `geminga standalone`, or name another one \
         with `--service-url` (or GEMINGA_SERVICE_URL).",
    ),
    (
        "G0502",
        "the broker refused",
        "The broker answered with the error in the message.",
    ),
    (
        "G0503",
        "no answer in time",
        "The broker took the request and did not answer within the time-out. It may be overloaded, or the \
         network between may be cut.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_have_a_text() {
        let codes: Vec<Code> = all().collect();
        assert!(codes.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(
            codes
                .iter()
                .all(|(code, title, text)| code.len() == 5 && !title.is_empty() && text.len() > 20)
        );
    }
}
