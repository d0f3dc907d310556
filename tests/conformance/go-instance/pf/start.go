// Package pf runs a function in this process, with a client of its own.
package pf

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar/pulsar-function-go/conf"
)

// Context is what a function may ask.
type Context struct {
	settings conf.Conf
	user     map[string]any
	logs     pulsar.Producer
}

type key struct{}

// FromContext gives the function's context.
func FromContext(ctx context.Context) *Context { return ctx.Value(key{}).(*Context) }

// GetUserConfValue gives a value of the user's configuration.
func (c *Context) GetUserConfValue(name string) any { return c.user[name] }

// GetInstanceID gives the number of this instance.
func (c *Context) GetInstanceID() int { return c.settings.InstanceID }

// Log writes to the log topic.
func (c *Context) Log(text string) {
	if c.logs != nil {
		c.logs.Send(context.Background(), &pulsar.ProducerMessage{Payload: []byte(text)})
	}
}

// Start runs the function until the process is ended, or the function fails.
func Start(function func(context.Context, []byte) ([]byte, error)) {
	if err := run(function); err != nil {
		fmt.Fprintln(os.Stderr, "instance failed:", err)
		os.Exit(1)
	}
}

func run(function func(context.Context, []byte) ([]byte, error)) error {
	here := &Context{user: map[string]any{}}
	settings := &here.settings
	if err := settings.Read(); err != nil {
		return err
	}
	if settings.UserConfig != "" {
		if err := json.Unmarshal([]byte(settings.UserConfig), &here.user); err != nil {
			return err
		}
	}
	options := pulsar.ClientOptions{URL: settings.PulsarServiceURL}
	if settings.AuthPlugin != "" {
		file, isFile := strings.CutPrefix(settings.AuthParameters, "file://")
		if !isFile || !strings.HasSuffix(settings.AuthPlugin, ".AuthenticationToken") {
			return fmt.Errorf("cannot show %s as %s", settings.AuthParameters, settings.AuthPlugin)
		}
		options.Authentication = pulsar.NewAuthenticationTokenFromFile(file)
	}
	client, err := pulsar.NewClient(options)
	if err != nil {
		return err
	}
	var out pulsar.Producer
	if settings.SinkSpecsTopic != "" {
		if out, err = client.CreateProducer(pulsar.ProducerOptions{Topic: settings.SinkSpecsTopic}); err != nil {
			return err
		}
	}
	if settings.LogTopic != "" {
		if here.logs, err = client.CreateProducer(pulsar.ProducerOptions{Topic: settings.LogTopic}); err != nil {
			return err
		}
	}
	kind := pulsar.Shared
	if settings.SubscriptionType == 1 {
		kind = pulsar.Failover
	}
	messages := make(chan pulsar.ConsumerMessage)
	for topic := range settings.SourceInputSpecs {
		_, err := client.Subscribe(pulsar.ConsumerOptions{
			Topic: topic, SubscriptionName: settings.SubscriptionName, Type: kind, MessageChannel: messages,
			NackRedeliveryDelay: 100 * time.Millisecond,
		})
		if err != nil {
			return err
		}
	}
	counts := &stats{heard: time.Now()}
	ended := make(chan error, 1)
	go func() { ended <- counts.serve(settings.Port, settings.InstanceID) }()
	fmt.Println("instance is up")
	beat := time.NewTicker(time.Second)
	for {
		select {
		case err := <-ended:
			return err
		case <-beat.C:
			counts.Lock()
			heard := counts.heard
			counts.Unlock()
			if time.Since(heard) > 3*time.Duration(settings.ExpectedHealthCheck)*time.Second {
				return fmt.Errorf("nobody asks for the health of this instance")
			}
		case got := <-messages:
			began := time.Now()
			counts.change(func() { counts.received++; counts.last = began })
			output, err := function(context.WithValue(context.Background(), key{}, here), got.Payload())
			if err != nil {
				// A failing function ends its instance.
				counts.change(func() {
					counts.userExceptions++
					counts.exceptions = append(counts.exceptions, exception{err.Error(), time.Now()})
				})
				got.Nack(got.Message)
				return err
			}
			if output != nil && out != nil {
				if _, err := out.Send(context.Background(), &pulsar.ProducerMessage{Payload: output}); err != nil {
					return err
				}
			}
			got.Ack(got.Message)
			counts.change(func() { counts.processed++; counts.busy += time.Since(began) })
		}
	}
}
