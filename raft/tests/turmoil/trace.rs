//! The trace of a simulation: every line goes into a digest and, if asked for, to a file.
//!
//! With [`Trace::follow_logs`] the log lines of everything that runs are part of it, at the finest level:
//! two runs with equal digests did the same things in the same order.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// A trace. Clones write to the same.
#[derive(Clone)]
pub(crate) struct Trace {
    lines: Arc<Mutex<Lines>>,
}

struct Lines {
    digest: u64,
    count: u64,
    text: String,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// An empty trace, written to a file as well if one is named.
    pub(crate) fn new(file: Option<&Path>) -> std::io::Result<Self> {
        let file = file.map(File::create).transpose()?.map(BufWriter::new);
        let lines = Lines {
            digest: 0xcbf2_9ce4_8422_2325,
            count: 0,
            text: String::new(),
            file,
        };
        Ok(Self {
            lines: Arc::new(Mutex::new(lines)),
        })
    }

    /// Takes a line.
    pub(crate) fn line(&self, at: Duration, text: fmt::Arguments<'_>) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = std::mem::take(&mut lines.text);
        buffer.clear();
        // Writing to a string does not fail.
        let _ = writeln!(buffer, "{:>9.3} {text}", at.as_secs_f64());
        for byte in buffer.bytes() {
            lines.digest ^= u64::from(byte);
            lines.digest = lines.digest.wrapping_mul(0x0100_0000_01b3);
        }
        lines.count += 1;
        if let Some(file) = &mut lines.file {
            // The digest is what counts; a full disk shows in the next command.
            let _ = file.write_all(buffer.as_bytes());
        }
        lines.text = buffer;
    }

    /// Digest and number of lines.
    pub(crate) fn digest(&self) -> (u64, u64) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut lines.file {
            let _ = file.flush();
        }
        (lines.digest, lines.count)
    }

    /// Takes every log line of this process from now on.
    pub(crate) fn follow_logs(&self) {
        let subscriber = tracing_subscriber::registry().with(Logs(self.clone()));
        // Set once per process, at its start.
        let _ = tracing::subscriber::set_global_default(subscriber);
    }
}

/// Turns log lines into lines of the trace.
struct Logs(Trace);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Logs {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = String::new();
        let metadata = event.metadata();
        let mut span = context.event_span(event);
        while let Some(inner) = span {
            let _ = write!(text, "{}/", inner.name());
            span = inner.parent();
        }
        let _ = write!(text, " {} {}", metadata.level(), metadata.target());
        event.record(&mut Fields(&mut text));
        self.0.line(crate::record::now(), format_args!("{text}"));
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
