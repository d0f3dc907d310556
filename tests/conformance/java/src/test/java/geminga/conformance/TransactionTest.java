package geminga.conformance;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.apache.pulsar.client.api.ClientBuilder;
import org.apache.pulsar.client.api.Consumer;
import org.apache.pulsar.client.api.Message;
import org.apache.pulsar.client.api.MessageId;
import org.apache.pulsar.client.api.MessageIdAdv;
import org.apache.pulsar.client.api.Producer;
import org.apache.pulsar.client.api.PulsarClientException;
import org.apache.pulsar.client.api.Reader;
import org.apache.pulsar.client.api.Schema;
import org.apache.pulsar.client.api.SubscriptionType;
import org.apache.pulsar.client.api.transaction.Transaction;
import org.junit.jupiter.api.Test;

class TransactionTest extends Judge {
    @Override
    void options(ClientBuilder builder) {
        builder.enableTransaction(true);
    }

    private Transaction begin() throws Exception {
        return begin(60_000);
    }

    private Transaction begin(int millis) throws Exception {
        return soon(client.newTransaction().withTransactionTimeout(millis, TimeUnit.MILLISECONDS).build());
    }

    private Producer<String> transactional(String topic) throws PulsarClientException {
        return client.newProducer(Schema.STRING).topic(topic).enableBatching(false).sendTimeout(0, TimeUnit.SECONDS).create();
    }

    @Test
    void producedAndAcknowledgedTogether() throws Exception {
        String out = topic + "-out";
        send(producer(), 0, 3);
        Consumer<String> in = from(SubscriptionType.Shared).subscribe();
        Producer<String> producer = transactional(out);
        topic = out;
        Consumer<String> result = from(SubscriptionType.Exclusive).subscribe();
        Transaction txn = begin();
        for (Message<String> message : receive(in, 3)) {
            producer.newMessage(txn).value(message.getValue() + "!").send();
            soon(in.acknowledgeAsync(message.getMessageId(), txn));
        }
        nothing(result);
        soon(txn.commit());
        assertEquals(Transaction.State.COMMITTED, txn.getState());
        assertEquals(List.of("0!", "1!", "2!"), values(take(result, 3)));
        in.redeliverUnacknowledgedMessages();
        nothing(in);
    }

    @Test
    void anAbortHidesAndGivesBack() throws Exception {
        String out = topic + "-out";
        send(producer(), 0, 2);
        Consumer<String> in = from(SubscriptionType.Shared).subscribe();
        Producer<String> producer = transactional(out);
        Transaction txn = begin();
        for (Message<String> message : receive(in, 2)) {
            producer.newMessage(txn).value("never").send();
            soon(in.acknowledgeAsync(message.getMessageId(), txn));
        }
        soon(txn.abort());
        in.close();
        assertEquals(2, take(from(SubscriptionType.Shared).subscribe(), 2).size(), "what was acknowledged comes again");
        producer.send("after");
        topic = out;
        assertEquals(List.of("after"), values(take(from(SubscriptionType.Exclusive).subscribe(), 1)));
    }

    @Test
    void anOpenOneHoldsBackWhatFollows() throws Exception {
        Producer<String> producer = transactional(topic);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        producer.send("before");
        Transaction txn = begin();
        producer.newMessage(txn).value("inside").send();
        producer.send("behind");
        assertEquals("before", next(consumer).getValue());
        nothing(consumer);
        soon(txn.commit());
        assertEquals(List.of("inside", "behind"), values(receive(consumer, 2)));
    }

    @Test
    void lastMessageIdSkipsWhatWasAborted() throws Exception {
        Producer<String> producer = transactional(topic);
        MessageIdAdv id = (MessageIdAdv) producer.send("visible");
        Transaction txn = begin();
        producer.newMessage(txn).value("never").send();
        Reader<String> reader = client.newReader(Schema.STRING).topic(topic).startMessageId(MessageId.earliest).create();
        assertEquals("visible", reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS).getValue());
        assertFalse(reader.hasMessageAvailable(), "while it is open");
        soon(txn.abort());
        assertFalse(reader.hasMessageAvailable(), "after it was aborted");
        MessageIdAdv last = (MessageIdAdv) reader.getLastMessageIds().get(0);
        assertEquals(id.getLedgerId() + ":" + id.getEntryId(), last.getLedgerId() + ":" + last.getEntryId());
        producer.send("next");
        assertTrue(reader.hasMessageAvailable());
        assertEquals("next", reader.readNext(PATIENCE_SECONDS, TimeUnit.SECONDS).getValue());
    }

    @Test
    void theTimeoutIsInMilliseconds() throws Exception {
        Producer<String> producer = transactional(topic);
        Consumer<String> consumer = from(SubscriptionType.Exclusive).subscribe();
        Transaction brief = begin(1_500);
        producer.newMessage(brief).value("never").send();
        producer.send("behind");
        // only the end of the forgotten transaction lets the next message through
        assertEquals("behind", next(consumer).getValue());
        ExecutionException late = assertThrows(ExecutionException.class, () -> soon(brief.commit()));
        assertTrue(late.getCause() != null, late.toString());
        Transaction txn = begin();
        producer.newMessage(txn).value("fresh").send();
        soon(txn.commit());
        assertEquals("fresh", next(consumer).getValue());
    }

    @Test
    void twoCannotAcknowledgeTheSame() throws Exception {
        send(producer(), 0, 2);
        Consumer<String> consumer = from(SubscriptionType.Shared).subscribe();
        List<Message<String>> messages = receive(consumer, 2);
        Transaction first = begin();
        Transaction second = begin();
        soon(consumer.acknowledgeAsync(messages.get(0).getMessageId(), first));
        ExecutionException conflict = assertThrows(ExecutionException.class,
                () -> soon(consumer.acknowledgeAsync(messages.get(0).getMessageId(), second)));
        assertInstanceOf(PulsarClientException.TransactionConflictException.class, conflict.getCause());
        soon(consumer.acknowledgeAsync(messages.get(1).getMessageId(), first));
        soon(first.commit());
        soon(second.abort());
        eventually("all is acknowledged", () -> backlog("s") == 0 || admin().topics().getStats(topic).getSubscriptions()
                .get("s").getUnackedMessages() == 0);
    }

    @Test
    void batchesAndCumulativeAcknowledgementInOne() throws Exception {
        send(batching(), 0, 10);
        Consumer<String> consumer = from(SubscriptionType.Failover).subscribe();
        List<Message<String>> messages = receive(consumer, 10);
        Producer<String> producer = client.newProducer(Schema.STRING).topic(topic + "-out").sendTimeout(0, TimeUnit.SECONDS).create();
        Transaction txn = begin();
        for (int number = 0; number < 10; number++) {
            producer.newMessage(txn).value("" + number).sendAsync();
        }
        producer.flush();
        soon(consumer.acknowledgeCumulativeAsync(messages.get(9).getMessageId(), txn));
        soon(txn.commit());
        consumer.close();
        nothing(from(SubscriptionType.Failover).subscribe());
        topic = topic + "-out";
        assertEquals(numbers(0, 10), values(take(from(SubscriptionType.Exclusive).subscribe(), 10)));
    }
}
