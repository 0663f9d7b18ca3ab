package launcher;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** As much JSON as a line between a launcher and its listener has. Numbers are Long or Double. */
final class Json {
    private final String text;
    private int at;

    private Json(String text) {
        this.text = text;
    }

    /** The object that a text is. Throws IllegalArgumentException where it is none. */
    @SuppressWarnings("unchecked")
    static Map<String, Object> parse(String text) {
        try {
            Object value = new Json(text).value();
            if (value instanceof Map) {
                return (Map<String, Object>) value;
            }
        } catch (StringIndexOutOfBoundsException error) {
            throw new IllegalArgumentException("it ends early");
        }
        throw new IllegalArgumentException("it is not an object");
    }

    static String write(Object value) {
        if (value instanceof Map) {
            StringBuilder all = new StringBuilder("{");
            for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
                all.append(all.length() > 1 ? ", " : "").append(quoted(entry.getKey().toString())).append(": ").append(write(entry.getValue()));
            }
            return all.append("}").toString();
        }
        return value == null || value instanceof Number || value instanceof Boolean ? String.valueOf(value) : quoted(value.toString());
    }

    private static String quoted(String text) {
        StringBuilder all = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c < ' ' || c > '~' || c == '"' || c == '\\') {
                all.append(String.format("\\u%04x", (int) c));
            } else {
                all.append(c);
            }
        }
        return all.append('"').toString();
    }

    private Object value() {
        switch (next()) {
            case '{':
                return object();
            case '[':
                return array();
            case '"':
                return string();
            default:
                at--;
                return word();
        }
    }

    private Map<String, Object> object() {
        Map<String, Object> found = new LinkedHashMap<>();
        char c = next();
        while (c != '}') {
            if (c != '"') {
                throw wrong();
            }
            String name = string();
            if (next() != ':') {
                throw wrong();
            }
            found.put(name, value());
            c = separator('}');
        }
        return found;
    }

    private List<Object> array() {
        List<Object> found = new ArrayList<>();
        char c = next();
        while (c != ']') {
            at--;
            found.add(value());
            c = separator(']');
        }
        return found;
    }

    /** What comes after a value: the end, or the first character of the next one. */
    private char separator(char end) {
        char c = next();
        if (c == end) {
            return c;
        }
        if (c != ',') {
            throw wrong();
        }
        return next();
    }

    private String string() {
        StringBuilder found = new StringBuilder();
        for (char c = text.charAt(at++); c != '"'; c = text.charAt(at++)) {
            found.append(c == '\\' ? escaped() : c);
        }
        return found.toString();
    }

    private char escaped() {
        char c = text.charAt(at++);
        int known = "bfnrt".indexOf(c);
        if (c == 'u') {
            at += 4;
            return (char) Integer.parseInt(text.substring(at - 4, at), 16);
        }
        return known < 0 ? c : "\b\f\n\r\t".charAt(known);
    }

    private Object word() {
        int start = at;
        while (at < text.length() && ",]} \t\r\n".indexOf(text.charAt(at)) < 0) {
            at++;
        }
        String word = text.substring(start, at);
        switch (word) {
            case "null":
                return null;
            case "true":
                return true;
            case "false":
                return false;
            default:
                if (word.matches("-?\\d+")) {
                    return Long.valueOf(word);
                }
                return Double.valueOf(word); // a NumberFormatException is an IllegalArgumentException
        }
    }

    private char next() {
        while (Character.isWhitespace(text.charAt(at))) {
            at++;
        }
        return text.charAt(at++);
    }

    private IllegalArgumentException wrong() {
        return new IllegalArgumentException("unexpected character " + at);
    }
}
