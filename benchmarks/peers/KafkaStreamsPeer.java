import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Properties;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;

/** Kafka Streams with one thread, which stops when the process is told to. */
public final class KafkaStreamsPeer {
    /** The fields that are kept of an access-log record; the others are skipped while it is parsed. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    public record Request(String ip, String path, int status, @JsonProperty("latency_ms") double latencyMs) {}

    static final class RequestSerde implements Serde<Request> {
        private static final ObjectMapper MAPPER = new ObjectMapper();
        private static final ObjectReader READER = MAPPER.readerFor(Request.class);
        private static final ObjectWriter WRITER = MAPPER.writerFor(Request.class);

        @Override
        public Serializer<Request> serializer() {
            return (topic, request) -> {
                try {
                    return WRITER.writeValueAsBytes(request);
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            };
        }

        @Override
        public Deserializer<Request> deserializer() {
            return (topic, payload) -> {
                try {
                    return READER.readValue(payload);
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            };
        }
    }

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
        if (job.equals("json")) {
            // Larger batches than the defaults: with those it is slower.
            settings.put("main.consumer.max.poll.records", 10_000);
            settings.put("main.consumer.max.partition.fetch.bytes", 8 * 1024 * 1024);
            settings.put("producer.linger.ms", 20);
            settings.put("producer.batch.size", 256 * 1024);
        } else {
            settings.put("producer.linger.ms", 0);
        }

        StreamsBuilder builder = new StreamsBuilder();
        if (job.equals("json")) {
            RequestSerde request = new RequestSerde();
            builder.stream(inputTopic, Consumed.with(Serdes.ByteArray(), request))
                .filter((key, value) -> value.status() >= 400)
                .to(outputTopic, Produced.with(Serdes.ByteArray(), request));
        } else {
            builder.stream(inputTopic, Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
                .to(outputTopic, Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
        }
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }
}
