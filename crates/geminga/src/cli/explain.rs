//! `geminga explain CODE`: the longer story behind an error.

use geminga_stdx::{Diagnostic, nearest::nearest};

use crate::codes;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  geminga explain G0102")]
pub(crate) struct ExplainArgs {
    /// The code, as it stands in `error[G0102]`; all codes when left out
    code: Option<String>,
}

pub(crate) fn run(args: &ExplainArgs) -> Outcome {
    let Some(wanted) = &args.code else {
        for (code, title, _) in codes::all() {
            output::line(&format!("{code}  {title}"))?;
        }
        return Ok(());
    };
    let wanted = wanted.to_ascii_uppercase();
    let Some((code, title, text)) = codes::all().find(|(code, _, _)| *code == wanted) else {
        let mut diagnostic =
            Diagnostic::error("G0003", format!("there is no error code `{wanted}`"));
        if let Some(near) = nearest(&wanted, codes::all().map(|(code, _, _)| code)) {
            diagnostic = diagnostic.help(format!("geminga explain {near}"));
        }
        return Err(Failure::new(Exit::NotFound, diagnostic));
    };
    output::line(&format!("{code}: {title}\n\n{text}"))
}
