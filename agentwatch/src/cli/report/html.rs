//! A report as one HTML file that needs nothing else: no script, no font, no image, nothing from the network, and a policy that
//! forbids the browser all of them. Whatever is foreign goes through maud's escaping.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::document::{Block, Document, Grade, Span};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--warn:#9a6700;--bad:#cf222e}\
@media(prefers-color-scheme:dark){:root{--good:#3fb950;--warn:#d29922;--bad:#ff7b72}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin-bottom:.3rem}h2{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}\
code,pre{font:13px/1.45 ui-monospace,monospace;overflow-wrap:anywhere}pre{overflow-x:auto;overflow-wrap:normal}\
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid var(--line)}\
th{white-space:nowrap}.verdict{border-left:.3rem solid var(--line);padding:.4rem .8rem;margin:.8rem 0}\
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}\
.verdict.good{border-color:var(--good)}.verdict.warn{border-color:var(--warn)}.verdict.bad{border-color:var(--bad)}\
@media print{body{max-width:none;margin:0}}";

/// The whole file.
pub(super) fn of(document: &Document) -> String {
    let (grade, text) = &document.verdict;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="referrer" content="no-referrer";
                title { (document.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { (document.title) }
                    p class=(format!("verdict {}", class(*grade))) { (text) }
                    @for block in &document.blocks { (self::block(block)) }
                }
            }
        }
    };
    page.into_string()
}

fn block(block: &Block) -> Markup {
    html! {
        @match block {
            Block::Heading(text) => { h2 { (text) } }
            Block::Note(grade, text) => { p class=(class(*grade)) { (text) } }
            Block::Facts(facts) => {
                table {
                    @for (name, spans) in facts {
                        tr { th scope="row" { (name) } td { (line(spans)) } }
                    }
                }
            }
            Block::Table { titles, rows } => {
                div.wide {
                    table {
                        thead { tr { @for title in titles { th scope="col" { (title) } } } }
                        tbody {
                            @for row in rows {
                                tr { @for spans in row { td { (line(spans)) } } }
                            }
                        }
                    }
                }
            }
            Block::Tree(lines) => { pre { (lines.join("\n")) } }
        }
    }
}

fn line(spans: &[Span]) -> Markup {
    html! {
        @for span in spans {
            @match span {
                Span::Word(text) => { (text) }
                Span::Graded(grade, text) => { span class=(class(*grade)) { (text) } }
                Span::Code(text) => { @if !text.is_empty() { code { (text) } } }
            }
        }
    }
}

fn class(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "good",
        Grade::Warn => "warn",
        Grade::Bad => "bad",
        Grade::Plain => "plain",
    }
}
