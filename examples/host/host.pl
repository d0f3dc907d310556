# A host for functions in Perl: Geminga's host protocol, but for windows and schemas, and Perl's own library and nothing else.
# A function is a program that ends with `Host::serve(sub { my ($input, $message) = @_; ... })`.
package Host;
use strict;
use warnings;
use constant {DONE => 0, FAILED => 1, DATA => 2, TEMPORARY => 3, DROP => 4, HOLD => 5};

my ($wire, @later, $asked, $facts, @outputs);

# Standard input is the socket. It is taken away from there, so that the function does not read it.
sub open_wire {
    open($wire, '+<&', \*STDIN) or die "no socket: $!";
    open(STDIN, '<', '/dev/null') or die "no /dev/null: $!";
    binmode $wire;
    $| = 1;
}

sub take {
    my ($count) = @_;
    my $bytes = '';
    while (length $bytes < $count) {
        my $got = sysread $wire, $bytes, $count - length $bytes, length $bytes;
        exit 0 unless $got;    # the worker has let go
    }
    return $bytes;
}

sub read_frame {
    my $head = take(12);
    return (substr($head, 0, 1), take(0 + substr $head, 2, 9));
}

sub write_frame {
    my ($kind, $body) = @_;
    my $bytes = sprintf("%s %09d\n", $kind, length $body) . $body;
    while (length $bytes) {
        my $wrote = syswrite $wire, $bytes;
        exit 1 unless defined $wrote;
        substr($bytes, 0, $wrote) = '';
    }
}

# A header block: lines of `name:value`, with escapes.
sub parse_block {
    my @pairs;
    for my $line (split /\n/, $_[0]) {
        my ($name, $value) = split /:/, $line, 2;
        next unless defined $value;
        s/\\(\\|n|[0-7]{3})/$1 eq '\\' ? '\\' : $1 eq 'n' ? "\n" : chr oct $1/ge for $name, $value;
        push @pairs, $name, $value;
    }
    return @pairs;
}

sub make_block {
    my $block = '';
    while (my ($name, $value) = splice @_, 0, 2) {
        s/\\/\\\\/g, s/\n/\\n/g, s/\0/\\000/g, s/\x1f/\\037/g for $name, $value;
        $name =~ s/:/\\072/g;
        $block .= "$name:$value\n";
    }
    return $block;
}

sub with_block { return pack('V/a*', make_block(@{$_[0]})) . ($_[1] // '') }

# What a function may ask for.
sub conf { return $facts->{"conf.$_[0]"} // $_[1] }
sub emit { my ($payload, @names) = @_; push @outputs, [make_block(@names), $payload]; return }
sub log_line { write_frame('L', with_block([level => $_[0]], $_[1])) }
sub metric { write_frame('M', with_block([name => $_[0], value => $_[1]])) }
sub put_state { write_frame('Q', with_block([op => 'state.put', key => $_[0]], $_[1])) }
sub delete_state { write_frame('Q', with_block([op => 'state.delete', key => $_[0]])) }
sub add { write_frame('Q', with_block([op => 'state.increment', key => $_[0], by => $_[1]])) }

sub get_state {
    write_frame('Q', with_block([op => 'state.get', ask => ++$asked, key => $_[0]]));
    while (1) {
        my ($kind, $body) = read_frame();
        if ($kind ne 'A') { push @later, [$kind, $body]; next }    # batches that come meanwhile are kept
        my ($block, $value) = unpack 'V/a* a*', $body;
        my %answer = parse_block($block);
        return $answer{found} ? $value : undef if $answer{ask} == $asked;
    }
}

# A counter is eight bytes, the highest first.
sub count { my $value = get_state($_[0]); return defined $value ? unpack('q>', $value) : 0 }

# Ways for a message to fail other than `die "why\n"`.
sub bad_data { die {verdict => DATA, reason => $_[0]} }
sub retry { die {verdict => TEMPORARY, reason => $_[0]} }
sub drop { die {verdict => DROP, reason => ''} }

sub outcome {
    my ($number, $verdict, $reason) = @_;
    my $outputs = join '', map { pack('VV', length $_->[0], length $_->[1]) . $_->[0] . $_->[1] } @outputs;
    write_frame('O', pack('V Q< C V V/a*', 1, $number, $verdict, scalar @outputs, $reason) . $outputs);
    @outputs = ();
}

sub batch {
    my ($call, $body) = @_;
    my ($first, $count) = unpack 'Q< V', $body;
    my @sizes = unpack "x12 V" . 2 * $count, $body;
    my $at = 12 + 8 * $count;
    for my $number ($first .. $first + $count - 1) {
        my ($block, $payload) = map { my $part = substr $body, $at, $_; $at += $_; $part } splice @sizes, 0, 2;
        my $output = eval { $call->($payload, {parse_block($block)}) };
        if (my $error = $@) {
            @outputs = ();
            print STDERR $error unless ref $error;
            $error = {verdict => FAILED, reason => "$error"} unless ref $error;
            chomp $error->{reason};
            outcome($number, $error->{verdict}, $error->{reason});
            next;
        }
        unshift @outputs, ['', $output] if defined $output;
        outcome($number, $facts->{manualAck} ? HOLD : DONE, '');
    }
}

sub serve {
    my ($call) = @_;
    open_wire();
    my (undef, $hello) = read_frame();
    $facts = {parse_block($hello)};
    if ($facts->{protocol} ne '1') {
        write_frame('F', "host protocol $facts->{protocol} is not 1");
        exit 1;
    }
    write_frame('R', with_block([protocol => 1, language => "perl $]"]));
    while (1) {
        my ($kind, $body) = @later ? @{shift @later} : read_frame();
        if ($kind eq 'B') { batch($call, $body) }
        elsif ($kind eq 'P') { write_frame('G', '') }
        elsif ($kind eq 'D') { exit 0 }
    }
}

1;
