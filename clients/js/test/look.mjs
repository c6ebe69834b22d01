// What can be told of a page's looks without eyes: contrast, and what sticks out.

/** Texts that people see with less contrast than WCAG 2 AA asks for, on the page as it is now. */
export function tooFaint(page) {
  return page.evaluate(() => {
    const parse = (text) => {
      const numbers = text.match(/-?[\d.]+(e-?\d+)?/g)?.map(Number) ?? [0, 0, 0, 0];
      const [r, g, b, a = 1] = numbers;
      return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
    };
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
    const light = (rgb) => {
      const [r, g, b] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parents = (node) => (node ? [node, ...parents(node.parentElement)] : []);
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.textContent.trim();
      const element = walker.currentNode.parentElement;
      if (!text || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      if (element.closest(".visually-hidden, .symbols, [inert], :disabled, script, style, noscript, option, datalist")) continue;
      const range = document.createRange();
      range.selectNode(walker.currentNode);
      const box = range.getBoundingClientRect();
      if (box.width < 2 || box.height < 2 || box.right <= 0 || box.left >= innerWidth) continue;
      const line = parents(element);
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const back = line.reduceRight((below, node) => over(parse(getComputedStyle(node).backgroundColor), below), dark ? [0, 0, 0] : [255, 255, 255]);
      const style = getComputedStyle(element);
      const opacity = line.reduce((all, node) => all * Number(getComputedStyle(node).opacity), 1);
      const color = parse(style.color);
      const front = over([color[0], color[1], color[2], color[3] * opacity], back);
      const [one, other] = [light(front), light(back)];
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      if (contrast < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)} (${element.tagName.toLowerCase()}.${element.className})`);
    }
    return found;
  });
}

/** How far the page can be scrolled sideways; and what sticks out of the window without a box that scrolls. */
export function sticksOut(page) {
  return page.evaluate(() => {
    const wide = document.documentElement.scrollWidth - innerWidth;
    const found = wide > 0 ? [`the page is ${wide} px too wide`] : [];
    for (const element of document.body.querySelectorAll("*")) {
      if (!element.checkVisibility({ visibilityProperty: true }) || element.closest(".visually-hidden, .symbols, [inert], svg")) continue;
      const box = element.getBoundingClientRect();
      if (box.width < 2 || box.right <= innerWidth + 1) continue;
      let parent = element.parentElement;
      while (parent && getComputedStyle(parent).overflowX === "visible") parent = parent.parentElement;
      if (!parent || parent === document.body || parent === document.documentElement) found.push(`${element.tagName.toLowerCase()}.${element.className} ends at ${Math.round(box.right)}`);
    }
    return found;
  });
}

/** What can be used and has no name for who cannot see it. */
export function nameless(page) {
  return page.evaluate(() => {
    const found = [];
    for (const element of document.body.querySelectorAll("button, a[href], input:not([type=hidden]), select, textarea")) {
      if (!element.checkVisibility({ visibilityProperty: true }) || element.closest("[inert], [aria-hidden=true]")) continue;
      const name = element.getAttribute("aria-label") || element.labels?.[0]?.textContent || element.textContent || element.title;
      if (!name?.trim()) found.push(element.outerHTML.slice(0, 80));
    }
    return found;
  });
}
