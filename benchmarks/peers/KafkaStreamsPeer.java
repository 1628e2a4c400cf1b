import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.StateRestoreListener;

/** Kafka Streams with one thread, which stops when the process is told to. */
public final class KafkaStreamsPeer {
    /** The fields that are kept of an access-log record; the others are skipped while it is parsed. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public record Request(String ip, String path, int status, @JsonProperty("latency_ms") double latencyMs) {}

    public record Team(String team) {}

    public record TeamRequest(
        String ip, String path, int status, @JsonProperty("latency_ms") double latencyMs, String team) {
        static TeamRequest of(Request request, Team team) {
            return new TeamRequest(request.ip, request.path, request.status, request.latencyMs, team.team);
        }
    }

    static final class JsonSerde<T> implements Serde<T> {
        private static final ObjectMapper MAPPER = new ObjectMapper();
        private final ObjectReader reader;
        private final ObjectWriter writer;

        JsonSerde(Class<T> type) {
            reader = MAPPER.readerFor(type);
            writer = MAPPER.writerFor(type);
        }

        @Override
        public Serializer<T> serializer() {
            return (topic, value) -> {
                try {
                    return writer.writeValueAsBytes(value);
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            };
        }

        @Override
        public Deserializer<T> deserializer() {
            return (topic, payload) -> {
                try {
                    return reader.readValue(payload);
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            };
        }
    }

    /** Logs restores on standard error in the format of this library. */
    static final class RestoreLog implements StateRestoreListener {
        private final Map<TopicPartition, Long> started = new ConcurrentHashMap<>();

        @Override
        public void onRestoreStart(TopicPartition changelog, String store, long start, long end) {
            started.put(changelog, System.nanoTime());
            System.err.printf("{\"event\":\"restore started\",\"task\":\"%s\"}%n", changelog);
        }

        @Override
        public void onBatchRestored(TopicPartition changelog, String store, long end, long count) {}

        @Override
        public void onRestoreEnd(TopicPartition changelog, String store, long total) {
            double seconds = (System.nanoTime() - started.remove(changelog)) / 1e9;
            System.err.printf(
                "{\"event\":\"restored\",\"task\":\"%s\",\"records\":%d,\"seconds\":%.3f}%n",
                changelog, total, seconds);
        }
    }

    private static final Serde<byte[]> BYTES = Serdes.ByteArray();
    private static final Serde<Request> REQUEST = new JsonSerde<>(Request.class);

    public static void main(String[] arguments) {
        String job = arguments[0];
        String guarantee = arguments[1];
        String inputTopic = arguments[3];
        String outputTopic = arguments[4];

        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[2]);
        settings.put("application.id", arguments[5]);
        settings.put("commit.interval.ms", Math.round(Double.parseDouble(arguments[6]) * 1000));
        settings.put("processing.guarantee", guarantee.equals("exactly_once") ? "exactly_once_v2" : guarantee);
        settings.put("auto.offset.reset", "earliest");
        settings.put("num.stream.threads", 1);
        settings.put("state.dir", "state");
        settings.put("statestore.cache.max.bytes", 64 * 1024 * 1024);
        // A table's topic is its changelog too, so nothing is written twice.
        settings.put("topology.optimization", "all");
        if (job.equals("copy")) {
            settings.put("producer.linger.ms", 0);
        } else {
            // Larger batches than the defaults, with which it is slower.
            settings.put("main.consumer.max.poll.records", 10_000);
            settings.put("main.consumer.max.partition.fetch.bytes", 8 * 1024 * 1024);
            settings.put("producer.linger.ms", 20);
            settings.put("producer.batch.size", 256 * 1024);
        }

        StreamsBuilder builder = new StreamsBuilder();
        switch (job) {
            case "json" ->
                builder.stream(inputTopic, Consumed.with(BYTES, REQUEST))
                    .filter((key, request) -> request.status() >= 400)
                    .to(outputTopic, Produced.with(BYTES, REQUEST));
            case "count-windows" ->
                builder.stream(inputTopic, Consumed.with(BYTES, BYTES))
                    .groupByKey()
                    .windowedBy(TimeWindows.ofSizeWithNoGrace(Duration.ofSeconds(10)))
                    .count(Materialized.with(BYTES, Serdes.Long()))
                    .toStream()
                    .map((key, count) -> KeyValue.pair(key.key(), windowCount(key.window().start(), count)))
                    .to(outputTopic, Produced.with(BYTES, BYTES));
            case "count-keys" ->
                builder.stream(inputTopic, Consumed.with(BYTES, BYTES))
                    .groupByKey()
                    .count(Materialized.with(BYTES, Serdes.Long()))
                    .toStream()
                    .mapValues(count -> ascii(count.toString()))
                    .to(outputTopic, Produced.with(BYTES, BYTES));
            case "join" ->
                builder.stream(inputTopic, Consumed.with(BYTES, REQUEST))
                    .join(
                        builder.table(arguments[7], Consumed.with(BYTES, new JsonSerde<>(Team.class))),
                        TeamRequest::of)
                    .to(outputTopic, Produced.with(BYTES, new JsonSerde<>(TeamRequest.class)));
            default ->
                builder.stream(inputTopic, Consumed.with(BYTES, BYTES))
                    .to(outputTopic, Produced.with(BYTES, BYTES));
        }
        KafkaStreams streams = new KafkaStreams(builder.build(settings), settings);
        streams.setGlobalStateRestoreListener(new RestoreLog());
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(streams)));
        streams.start();
    }

    private static void close(KafkaStreams streams) {
        // Otherwise the next process would wait until this member's session ends.
        streams.close(new KafkaStreams.CloseOptions().leaveGroup(true));
    }

    private static byte[] windowCount(long start, long count) {
        return ascii("{\"start\":" + start + ",\"value\":" + count + "}");
    }

    private static byte[] ascii(String text) {
        return text.getBytes(StandardCharsets.US_ASCII);
    }
}
