module exclamation

go 1.24.0

require github.com/apache/pulsar/pulsar-function-go v0.0.0

require github.com/apache/pulsar-client-go v0.19.0 // indirect

// Geminga's module in the place of Pulsar's, and the client's types in the place of the client.
replace github.com/apache/pulsar/pulsar-function-go => ../../sdk/go

replace github.com/apache/pulsar-client-go => ../../sdk/go/wasip1/pulsar-client-go
