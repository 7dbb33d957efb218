use axum::{
    http::{HeaderValue, header},
    response::{Html, IntoResponse, Response},
};

/// What no page of the sandbox needs: anything from elsewhere. The one script is the sender of `form_post`.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";
const WITH_SCRIPT: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                           base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1.5rem}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem}\
fieldset{border:1px solid;border-radius:.4rem;margin:1rem 0;padding:.5rem 1rem}\
label{display:block;padding:.4rem 0}\
button{font:inherit;padding:.5rem 1.2rem;margin-right:.5rem;cursor:pointer}\
code,pre{font-family:ui-monospace,monospace;overflow-wrap:anywhere}pre{white-space:pre-wrap}\
table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid;vertical-align:top}\
.replay{font-weight:bold}";

/// A whole page. `title` is text, `body` is HTML whose texts went through [`escape`].
pub(super) fn page(title: &str, body: &str) -> Response {
    render(title, "", body, CONTENT_SECURITY_POLICY)
}

/// A page that loads itself again.
pub(super) fn living_page(title: &str, body: &str, seconds: u8) -> Response {
    let refresh = format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">");
    render(title, &refresh, body, CONTENT_SECURITY_POLICY)
}

/// A page that sends its only form by itself, and by a button where scripts do not run.
pub(super) fn sending_page(title: &str, action: &str, fields: &[(&str, &str)]) -> Response {
    let body = format!(
        "<form method=\"post\" action=\"{}\">{}<p>You are being sent back to the application.</p>\
         <button>Continue</button></form><script>document.forms[0].submit()</script>",
        escape(action),
        hidden(fields)
    );
    render(title, "", &body, WITH_SCRIPT)
}

/// Hidden fields of a form.
pub(super) fn hidden(fields: &[(&str, &str)]) -> String {
    let inputs: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("<input type=\"hidden\" name=\"{}\" value=\"{}\">", escape(name), escape(value)))
        .collect();
    inputs.concat()
}

/// Text as HTML, inside elements and inside quoted attributes.
pub(super) fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, letter| {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            letter => html.push(letter),
        }
        html
    })
}

fn render(title: &str, head: &str, body: &str, policy: &'static str) -> Response {
    let title = escape(title);
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">{head}\
         <title>{title} – consentry sandbox</title><style>{STYLE}</style></head>\
         <body><main><h1>{title}</h1>{body}</main></body></html>"
    );
    let mut response = Html(html).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_leave_its_element_or_attribute() {
        assert_eq!(escape("<b a=\"1\" b='2'>&amp;"), "&lt;b a=&quot;1&quot; b=&#39;2&#39;&gt;&amp;amp;");
        assert_eq!(
            hidden(&[("state", "\"><script>")]),
            "<input type=\"hidden\" name=\"state\" value=\"&quot;&gt;&lt;script&gt;\">"
        );
    }
}
