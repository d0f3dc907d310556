// The types of Pulsar's Go client that functions meet, for programs in WebAssembly: the client itself has
// dependencies that do not build there. It stands in for the client by a `replace` line.
module github.com/apache/pulsar-client-go

go 1.24.0
