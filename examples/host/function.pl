#!/usr/bin/perl
# A function in Perl that does everything that a host must be able to: the cases beside it ask for it.
use strict;
use warnings;
use FindBin;
require "$FindBin::Bin/host.pl";

Host::serve(sub {
    my ($input, $message) = @_;
    die "no luck\n" if $input eq 'fail';
    Host::bad_data('never') if $input eq 'bad';
    Host::retry('later') if $input eq 'retry';
    Host::drop() if $input eq 'drop';
    return undef if $input eq 'none';
    if ($input eq 'state') {
        Host::add('n', 2);
        Host::put_state('last', $input);
        Host::delete_state('old');
        return 'n is ' . Host::count('n');
    }
    if ($input eq 'more') {
        Host::log_line('WARN', 'two outputs');
        Host::metric('size', 1.5);
        Host::emit('extra', topic => 'other', key => "k:\n", 'prop.a:b' => "c\\d");
        return ($message->{key} // 'no key') . ' ' . ($message->{'prop.p'} // 'no p');
    }
    print "seen\n";
    return $input . Host::conf('mark', '!');
});
