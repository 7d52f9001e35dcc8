//! What will be done, for people.

use super::{
    plan::{Form, Meshed, Plan},
    words::{self, is_root},
};

/// The plan as a table with notes.
#[must_use]
pub fn text(plan: &Plan) -> String {
    let head = ["SERVICE", "IN THE MESH", "PORTS", "USER", "WRAPPED"].map(str::to_owned).to_vec();
    let mut rows = vec![head];
    rows.extend(plan.meshed.iter().map(row));
    let mut text = table(&rows);
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text += &format!("\n{title}:\n{}", lines.iter().map(|line| format!("  {line}\n")).collect::<String>());
        }
    };
    section("Left as they are", plan.skipped.iter().map(|s| format!("{}: {}", s.service, s.reason)).collect());
    let of =
        |meshed: &Meshed| meshed.notes.iter().map(|note| format!("{}: {note}", meshed.service)).collect::<Vec<_>>();
    let notes = plan.meshed.iter().flat_map(of).chain(plan.notes.iter().cloned()).collect();
    section("Notes", notes);
    text
}

fn row(meshed: &Meshed) -> Vec<String> {
    let ports = meshed.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let (user, wrapped) = match &meshed.form {
        Form::Wrapped(wrapped) => {
            let command: Vec<String> = wrapped.entrypoint.iter().chain(&wrapped.arguments).cloned().collect();
            let user = if is_root(&wrapped.user) { "root".to_owned() } else { wrapped.user.clone() };
            (user, shortened(&words::join(&command)))
        }
        Form::Separate(_) => ("-".to_owned(), format!("no: its sidecar is {}", meshed.sidecar())),
    };
    vec![
        meshed.service.clone(),
        meshed.mesh.clone(),
        if ports.is_empty() { "-".to_owned() } else { ports },
        user,
        wrapped,
    ]
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(WIDEST_COMMAND) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Longer ones are cut.
const WIDEST_COMMAND: usize = 60;
