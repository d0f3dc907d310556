// Package conf reads what a worker tells an instance.
package conf

import (
	"encoding/json"
	"flag"
)

// Conf is what is told. The names are the contract.
type Conf struct {
	PulsarServiceURL     string            `json:"pulsarServiceURL"`
	InstanceID           int               `json:"instanceID"`
	Port                 int               `json:"port"`
	ClusterName          string            `json:"clusterName"`
	ExpectedHealthCheck  int               `json:"expectedHealthCheckInterval"`
	Tenant               string            `json:"tenant"`
	NameSpace            string            `json:"nameSpace"`
	Name                 string            `json:"name"`
	LogTopic             string            `json:"logTopic"`
	ProcessingGuarantees int               `json:"processingGuarantees"`
	UserConfig           string            `json:"userConfig"`
	AutoAck              bool              `json:"autoAck"`
	SubscriptionType     int               `json:"subscriptionType"`
	SubscriptionName     string            `json:"subscriptionName"`
	SourceInputSpecs     map[string]string `json:"sourceInputSpecs"`
	SinkSpecsTopic       string            `json:"sinkSpecsTopic"`
	AuthPlugin           string            `json:"clientAuthenticationPlugin"`
	AuthParameters       string            `json:"clientAuthenticationParameters"`
}

var text = flag.String("instance-conf", "", "the settings as JSON")

// Read takes the settings off the command line.
func (c *Conf) Read() error {
	flag.Parse()
	return json.Unmarshal([]byte(*text), c)
}
