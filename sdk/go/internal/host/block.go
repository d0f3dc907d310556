package host

import "strings"

// Pair is one line of a header block.
type Pair struct{ Name, Value string }

// ParseBlock reads the lines of a header block.
func ParseBlock(block []byte) []Pair {
	var pairs []Pair
	for _, line := range strings.Split(string(block), "\n") {
		if name, value, found := strings.Cut(line, ":"); found {
			pairs = append(pairs, Pair{unescape(name), unescape(value)})
		}
	}
	return pairs
}

// AppendPair writes one line of a header block.
func AppendPair(block []byte, name, value string) []byte {
	block = escape(block, name, true)
	block = append(block, ':')
	block = escape(block, value, false)
	return append(block, '\n')
}

func escape(to []byte, text string, name bool) []byte {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\':
			to = append(to, `\\`...)
		case c == '\n':
			to = append(to, `\n`...)
		case c == 0:
			to = append(to, `\000`...)
		case c == 0x1f:
			to = append(to, `\037`...)
		case c == ':' && name:
			to = append(to, `\072`...)
		default:
			to = append(to, c)
		}
	}
	return to
}

func unescape(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] != '\\' || i+1 == len(text):
			out = append(out, text[i])
		case text[i+1] == 'n':
			out = append(out, '\n')
			i++
		case text[i+1] == '\\':
			out = append(out, '\\')
			i++
		case i+3 < len(text):
			out = append(out, (text[i+1]-'0')<<6|(text[i+2]-'0')<<3|(text[i+3]-'0'))
			i += 3
		}
	}
	return string(out)
}
