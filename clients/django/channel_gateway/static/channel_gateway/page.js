/**
 * Started by `{% gateway_client %}`: connects as the tag's attributes say, and gives the page
 * `window.gateway` and the event `gateway` on `document`, whichever comes first.
 */

for (const script of document.querySelectorAll("script[data-gateway-client]:not([data-gateway-started])")) {
  script.dataset.gatewayStarted = "";
  const { gatewayClient, gatewayUrl, gatewayToken } = script.dataset;
  import(gatewayClient).then(({ connect }) => {
    const getToken = gatewayToken ? () => token(gatewayToken) : null;
    window.gateway = connect(gatewayUrl, { getToken });
    document.dispatchEvent(new CustomEvent("gateway", { detail: window.gateway }));
  });
}

/** A token for who is signed in; null for nobody. */
async function token(url) {
  const answer = await fetch(url, { credentials: "same-origin", cache: "no-store", headers: { Accept: "application/json" } });
  if (answer.status === 401) return null;
  if (!answer.ok) throw new Error(`the token's address answered ${answer.status}`);
  return (await answer.json()).token;
}
