//! The list of organizations that an access token reaches, read tolerantly: the field names vary.

use serde_json::Value;

use crate::model::OrganizationId;

/// The largest list that is read, in bytes.
pub(super) const MAX_LIST: usize = 1024 * 1024;
/// Members that hold an organization's id, without regard to case; the first that is there counts.
const ID_NAMES: [&str; 3] = ["organizationId", "organisationId", "id"];

/// The ids in `body`: an array of objects, or an object that wraps such an array. `None` if it is neither, or if none
/// of its elements has an id.
pub(super) fn read(body: &[u8]) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let elements = match &value {
        Value::Array(elements) => elements,
        Value::Object(members) => members.values().find_map(Value::as_array)?,
        _ => return None,
    };
    let ids: Vec<_> = elements.iter().filter_map(id).collect();
    (!ids.is_empty() || elements.is_empty()).then_some(ids)
}

fn id(element: &Value) -> Option<String> {
    let members = element.as_object()?;
    ID_NAMES.iter().find_map(|wanted| {
        let (_, value) = members.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        let id = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        OrganizationId::is_valid(&id).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_under_any_of_their_names() {
        for (body, expected) in [
            (r#"[{"id":123,"name":"A"},{"id":"456"}]"#, Some(vec!["123", "456"])),
            (r#"{"Collection":[{"organizationId":7,"id":1}],"n":1}"#, Some(vec!["7"])),
            (r#"[{"OrganizationId":"dk-1"},{"name":"none"},5]"#, Some(vec!["dk-1"])),
            (r#"[{"id":"no/id"},{"id":1}]"#, Some(vec!["1"])),
            ("[]", Some(vec![])),
            (r#"[{"name":"none"}]"#, None),
            (r#"{"error":"x"}"#, None),
            ("<html>", None),
        ] {
            let expected = expected.map(|ids| ids.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(read(body.as_bytes()), expected, "{body}");
        }
    }
}
