# Produces, consumes and acknowledges with Pulsar's own client: pip install pulsar-client
import pulsar

client = pulsar.Client("pulsar://127.0.0.1:6650", logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error))
consumer = client.subscribe("greetings", "me", consumer_type=pulsar.ConsumerType.KeyShared)
producer = client.create_producer("greetings")
for name in ("ada", "bob"):
    producer.send(f"hello {name}".encode(), partition_key=name)    # returns when it is on the disk
for _ in range(2):
    message = consumer.receive(timeout_millis=5000)
    print(message.partition_key(), message.data().decode())
    consumer.acknowledge(message)
client.close()
