//! The table that a bench run prints.
//!
//! In       figures with what they are compared to and what they should reach.
//! Out      Markdown, one line a figure.
//! Not here how figures come about (`rows`).

/// What a ratio should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Beside the target, for the reader.
    Shown,
}

/// One figure.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) work: String,
    pub(crate) figure: String,
    /// Whom it is compared to, and their figure.
    pub(crate) beside: String,
    pub(crate) ratio: f64,
    pub(crate) target: Target,
}

impl Line {
    /// A figure beside another one of the same unit.
    pub(crate) fn ratio(
        work: &str,
        unit: &str,
        ours: f64,
        (who, theirs): (&str, f64),
        target: Target,
    ) -> Self {
        Self {
            work: work.to_owned(),
            figure: format!("{} {unit}", digits(ours)),
            beside: format!("{who} {}", digits(theirs)),
            ratio: ours / theirs,
            target,
        }
    }

    /// A figure with a bound of its own.
    pub(crate) fn bound(work: &str, unit: &str, ours: f64, at_most: f64) -> Self {
        Self {
            work: work.to_owned(),
            figure: format!("{} {unit}", digits(ours)),
            beside: format!("bound {}", digits(at_most)),
            ratio: if at_most == 0.0 { ours } else { ours / at_most },
            target: Target::AtMost(if at_most == 0.0 { 0.0 } else { 1.0 }),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.target {
            Target::AtLeast(least) if self.ratio < least => "**short**",
            Target::AtMost(most) if self.ratio > most => "**short**",
            Target::AtLeast(_) | Target::AtMost(_) => "pass",
            Target::Shown => "",
        }
    }

    fn markdown(&self) -> String {
        let target = match self.target {
            Target::AtLeast(least) => format!("≥ {}", digits(least)),
            Target::AtMost(most) => format!("≤ {}", digits(most)),
            Target::Shown => String::new(),
        };
        let Self {
            work,
            figure,
            beside,
            ratio,
            ..
        } = self;
        format!(
            "| {work} | {figure} | {beside} | {} | {target} | {} |",
            digits(*ratio),
            self.verdict()
        )
    }
}

/// The whole table.
pub(crate) fn markdown(lines: &[Line]) -> String {
    let mut text =
        String::from("| work | carrack | beside | ratio | target | |\n|---|---|---|---|---|---|\n");
    for line in lines {
        text.push_str(&line.markdown());
        text.push('\n');
    }
    let n_short = lines
        .iter()
        .filter(|line| line.verdict() == "**short**")
        .count();
    let n_judged = lines
        .iter()
        .filter(|line| !line.verdict().is_empty())
        .count();
    text.push_str(&format!(
        "\n{} of {n_judged} targets reached\n",
        n_judged - n_short
    ));
    text
}

/// Three significant digits, so that a table can be read.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
